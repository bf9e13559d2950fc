# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Paged attention on a CPU whose result for a query depends on that query and what it sees alone.

Whether it is computed in a long chunk or by itself, beside which other sequences and over which
blocks changes no bit: see ``backend/kernels/row_kernels.h``. Blocks are read where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from slipstream import _kernels
from slipstream.attention.interface import BatchLayout, IntArray, Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache, pools_by_layer
from slipstream.attention.preparation import Preparation
from slipstream.attention.stored_kv import StoredKv, write_rows
from slipstream.layers.rows import RowKernels, dtype_of

_TASK_QUERIES = 16  # of a task at most: together they read a key once
_TASK_SCORES = 1 << 18  # of a task at most, unless one query has more: they should stay in a cache


class PagedRows:
    """Plans batches over the KV caches of a model, of its own dtype. Arguments as of PagedSdpa."""

    def __init__(
        self,
        kernels: RowKernels,
        caches: Sequence[KvCache],
        layers: Sequence[Sequence[int]],
        num_heads: int,
        scores: Sequence[ScoreSpec],
    ) -> None:
        shape = caches[0].shape
        self.kernels = kernels
        self.num_heads = num_heads
        self.shape = shape
        self.scores = list(scores)
        self.places = pools_by_layer(caches, layers)
        self.stored = [StoredKv(pool, shape.dtype, None) for _, pool in self.places]

    def plan(self, batch: BatchLayout) -> PagedRowsPlan:
        return PagedRowsPlan(self, batch)


class PagedRowsPlan:
    """One step's indices; see AttentionPlan."""

    def __init__(self, backend: PagedRows, batch: BatchLayout) -> None:
        self._backend = backend
        self._tables = np.ascontiguousarray(batch.block_tables, np.int32)
        self._first_position = batch.first_position.astype(np.int32)
        self._first_row = (np.cumsum(batch.num_tokens) - batch.num_tokens).astype(np.int32)
        self._write_rows = [
            torch.from_numpy(write_rows(backend.shape, batch, table))
            for table in batch.block_tables
        ]
        group = backend.num_heads // backend.shape.num_kv_heads
        self._tasks = {
            mask: _tasks(batch, mask, group) for mask in {score.mask for score in backend.scores}
        }

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        """See AttentionPlan.run."""
        if preparation is not None:
            preparation.apply_(qkv)
        backend, shape = self._backend, self._backend.shape
        heads, kv_heads, dim = backend.num_heads, shape.num_kv_heads, shape.head_dim
        group, pool = backend.places[layer]
        score = backend.scores[layer]
        backend.stored[layer].write(self._write_rows[group], qkv[:, heads:])
        tables = self._tables[group]
        tasks, spans = self._tasks[score.mask]
        out = qkv.new_empty(qkv.shape[0], heads * shape.value_dim)
        sinks = None if sinks is None else sinks.float().contiguous()
        assert qkv.is_contiguous()
        backend.kernels.handle.attend(
            qkv.data_ptr(),
            qkv.stride(0),
            pool.data_ptr(),
            tables.ctypes.data,
            tables.shape[1],
            self._first_position.ctypes.data,
            self._first_row.ctypes.data,
            0 if sinks is None else sinks.data_ptr(),
            out.data_ptr(),
            shape.planes,
            kv_heads,
            heads // kv_heads,
            dim,
            shape.value_dim,
            shape.tokens_per_block,
            getattr(_kernels.MaskKind, score.mask.kind.upper()),
            score.mask.size,
            score.scale,
            score.soft_cap or 0.0,
            dtype_of(qkv),
            tasks.ctypes.data,
            spans.ctypes.data,
            tasks.shape[0],
        )
        return out


def _tasks(batch: BatchLayout, mask: Mask, queries_per_kv: int) -> tuple[np.ndarray, IntArray]:
    """Pieces of the sequences' queries: int32 ``[tasks, 3]``, sequence, first and end, and how many
    positions each piece sees: ``[tasks]``. Where they are cut changes no result."""
    pieces: list[tuple[int, int, int]] = []
    for i, (count, first) in enumerate(
        zip(batch.num_tokens.tolist(), batch.first_position.tolist(), strict=True)
    ):
        most = max(1, min(_TASK_QUERIES, _TASK_SCORES // ((first + count) * queries_per_kv)))
        pieces += [(i, begin, min(begin + most, count)) for begin in range(0, count, most)]
    tasks = np.array(pieces, np.int32)
    first = batch.first_position[tasks[:, 0]]
    lowest = mask.first_visible(first + tasks[:, 1])
    return tasks, first + tasks[:, 2] - lowest
