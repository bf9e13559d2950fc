# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention by FlashInfer (Ye et al., FlashInfer: Efficient and Customizable Attention Engine for
LLM Inference Serving) on a paged cache as our own kernels lay it out. The one file that imports it.

Its pages are our blocks, head by head ("HND"); keys and values are strided views of a pool, so that
nothing is copied. Decode is ``xqa``, which plans nothing on the host. Chunks are FlashAttention 3,
planned on the host with sizes that depend on the step's shape alone, so that a CUDA graph can be
replayed with another plan. That is called below the public wrapper, which would copy lists of pages
that these kernels can read in our block tables, and one plan of which serves one wrapper alone.
"""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]

VERSION = "0.6.14"  # what is called below the public interface may change with the next one
HEAD_DIMS = (64, 128)
BLOCK_SIZES = (16, 32, 64, 128)
MAX_GROUP = 16  # query heads of a KV head
CAPABILITY = (9, 0)

_XQA_SCRATCH = 16 << 20  # bytes, more than the partial results of a program on every SM
_ROWS_OF_A_TILE = 128  # or more
_ARRAYS_OF_A_PLAN = 7  # int32, one entry for each tile and head
_CAUSAL, _HEADS_FIRST, _NO_WINDOW = 1, 1, -1  # MaskMode, TensorLayout, window_left


def installed_version() -> str | None:
    """Of FlashInfer; None if it is not installed. Imports nothing."""
    try:
        return version("flashinfer-python")
    except PackageNotFoundError:
        return None


def load_kernels(head_dim: int, group: int, per_block: int, *, windows: bool, full: bool) -> None:
    """Loads what a model needs, in bfloat16, and compiles what is not compiled yet: minutes.

    group: query heads of a KV head. windows, full: whether layers have a window, and have none.
    Raises RuntimeError or OSError where a kernel is not compiled and cannot be.
    """
    from flashinfer.xqa import get_xqa_module

    dtype = torch.bfloat16
    for windowed in (False, True)[not full : 1 + windows]:
        get_xqa_module(dtype, dtype, per_block, head_dim, group, windowed, dtype, 1)
    if full:
        _fa3_module(head_dim)


def _fa3_module(head_dim: int) -> Any:
    from flashinfer.prefill import get_batch_prefill_module

    dtype = torch.bfloat16
    return get_batch_prefill_module(
        "fa3", dtype, dtype, dtype, torch.int32, head_dim, head_dim, 0, False, False, False
    )


class XqaDecode:
    """Attention of single tokens. Launches share a workspace: one at a time."""

    def __init__(self, max_sequences: int, kv_heads: int, device: torch.device) -> None:
        from flashinfer.xqa import xqa

        self._xqa = xqa
        self._scratch = torch.zeros(_XQA_SCRATCH, dtype=torch.uint8, device=device)
        # Zero between launches.
        self._arrivals = torch.zeros(max_sequences * kv_heads, dtype=torch.int32, device=device)

    def run(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
    ) -> None:
        """Attends from the last token of each sequence to the last ``window`` ones, 0: to all.

        q, out: bfloat16 ``[n, heads, head_dim]``, contiguous. pool: ``[num_blocks, 2, kv_heads,
        tokens_per_block, head_dim]``, keys before values. tables: int32 ``[n, blocks]``,
        contiguous; entries up to the last position are read, those before the window as well.
        lengths: int32 ``[n]``, each at least 1. Reads nothing on the host.
        """
        assert q.is_contiguous()
        assert out.is_contiguous()
        assert tables.is_contiguous()
        kv_heads, per_block, head_dim = pool.shape[2:]
        self._xqa(
            q.unsqueeze(1),
            pool[:, 0],
            pool[:, 1],
            tables,
            lengths.view(torch.uint32).unsqueeze(1),
            out.unsqueeze(1),
            self._scratch,
            self._arrivals.view(torch.uint32),
            kv_heads,
            per_block,
            q_scale=scale * math.sqrt(head_dim),  # the kernel divides by the root
            sliding_win_size=window,
            kv_layout="HND",
        )


class Chunks(NamedTuple):
    """Chunks of a step, in the order of their rows; int64 arrays ``[chunks]``."""

    rows: IntArray  # the first of each
    sizes: IntArray
    slots: IntArray  # rows of the block tables
    lengths: IntArray  # of the sequences, up to the chunk's end


class PlanArrays(NamedTuple):
    """What FlashInfer plans from, int32: ``[sequences + 1]``, ``[sequences + 1]``, ``[sequences]``.

    Rows that lie between chunks are sequences of length 0: they get zeros.
    """

    rows: torch.Tensor  # where each sequence's rows begin, and the last one's end
    tables: torch.Tensor  # where in the block tables each sequence's blocks begin
    lengths: torch.Tensor

    @classmethod
    def of(cls, chunks: Chunks, count: int, table_width: int) -> PlanArrays:
        """Of ``count`` sequences, the last ones without rows."""
        bounds = np.stack((chunks.rows, chunks.rows + chunks.sizes), 1).ravel()
        begin, end = bounds[:-1], bounds[1:]
        starts, lengths = np.zeros((2, bounds.size), np.int64)
        starts[::2], lengths[::2] = chunks.slots * table_width, chunks.lengths
        kept = np.flatnonzero(end > begin)
        assert kept.size <= count
        rows = np.full(count + 1, bounds[-1] if bounds.size else 0, np.int32)
        tables, known = np.zeros(count + 1, np.int32), np.zeros(count, np.int32)
        rows[: kept.size], tables[: kept.size] = begin[kept], starts[kept]
        known[: kept.size] = lengths[kept]
        return cls(*map(torch.from_numpy, (rows, tables, known)))


class Fa3Prefill:
    """Causal attention of chunks to all of their sequences.

    max_rows, max_chunks: of a step. depth: plans that may be waiting for the device.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        max_rows: int,
        max_chunks: int,
        depth: int,
        device: torch.device,
    ) -> None:
        self._module = _fa3_module(head_dim)
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        size = plan_bytes(heads, max_rows, max_chunks, _sms(device))
        self._plan = torch.zeros(size, dtype=torch.uint8, device=device)
        self._staged = torch.zeros((depth, size), dtype=torch.uint8, pin_memory=True)
        # What other kernels of FlashInfer's take and this one does not read.
        self._unread = torch.zeros(16, dtype=torch.int32, device=device)
        self._info: object = None

    def plan(
        self,
        chunks: Chunks,
        max_rows: int,
        max_chunks: int,
        table_width: int,
        per_block: int,
        turn: int,
    ) -> None:
        """Plans the chunks of a step of up to ``max_rows`` rows and ``max_chunks`` sequences, those
        that have rows between chunks included.

        A graph that holds ``run`` must be replayed with these two as they were when it was
        captured. table_width: blocks in a row of the block tables. turn: which of the ``depth``
        host buffers the device no longer reads. Enqueues a copy, waits for nothing.
        """
        arrays = PlanArrays.of(chunks, max_chunks, table_width)
        self._info = self._module.plan(
            self._unread,
            self._plan,
            self._staged[turn],
            *arrays,
            max_rows,
            max_chunks,
            self._heads,
            self._kv_heads,
            per_block,
            True,  # room for the largest plan of such a step
            self._head_dim,
            self._head_dim,
            True,  # causal
            _NO_WINDOW,
        )

    def run(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        tables: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
    ) -> None:
        """q, out: ``[tokens, heads, head_dim]``, heads of a token contiguous; only rows of chunks
        are written. pool: as for XqaDecode. tables: int32 ``[slots, blocks]``, contiguous; entries
        past a sequence's last position are not read."""
        assert tables.is_contiguous()
        assert self._info is not None
        unread = self._unread
        self._module.paged_run(
            unread,
            self._plan,
            self._info,
            q,
            pool[:, 0],
            pool[:, 1],
            unread,
            unread,
            tables.view(-1),
            unread,
            out,
            None,
            _CAUSAL,
            _HEADS_FIRST,
            _NO_WINDOW,
            False,
            *(None,) * 6,
            0.0,  # no soft cap
            scale,
            *(None,) * 3,
            1.0,
            1.0e4,
            0,
            unread.numel() * unread.itemsize,
        )


def plan_bytes(heads: int, max_rows: int, max_chunks: int, num_sms: int) -> int:
    """Room for any plan of so many rows and chunks."""
    tiles = -(-max_rows // _ROWS_OF_A_TILE) + max_chunks - 1
    arrays = _ARRAYS_OF_A_PLAN * (4 * tiles * heads + 16)
    return arrays + 4 * (num_sms + 1) + 16


def _sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
