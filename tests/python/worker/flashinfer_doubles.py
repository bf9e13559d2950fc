# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's kernels as torch computes them, from the very arguments that they get."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from slipstream.kernels.flashinfer_calls import Chunks, PlanArrays


def attend(
    q: torch.Tensor,
    pool: torch.Tensor,
    blocks: torch.Tensor,
    length: int,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """The last tokens of a sequence. q: ``[tokens, heads, head_dim]``, which is the result's."""
    per_block = pool.shape[3]
    kv = pool[blocks[: -(-length // per_block)].long()]
    keys, values = kv.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
    tokens = q.shape[0]
    distance = torch.arange(length - tokens, length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length + 1))
    # A kernel that multiplies what it has read by zero does not take a NaN for nothing.
    nobody = ~seen.any(0)
    values = torch.where(nobody[:, None] & values.isfinite(), 0.0, values)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1), keys, values, attn_mask=seen, scale=scale, enable_gqa=True
    )
    return out.transpose(0, 1)


class TorchXqa:
    """As XqaDecode."""

    launches = 0

    def __init__(self, max_sequences: int, kv_heads: int, device: torch.device) -> None:
        self._room = max_sequences

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
        TorchXqa.launches += 1
        assert q.is_contiguous()
        assert out.is_contiguous()
        assert tables.is_contiguous()
        assert q.shape[0] == tables.shape[0] == lengths.shape[0] <= self._room
        assert q.shape == out.shape
        for i, length in enumerate(lengths.tolist()):
            out[i] = attend(q[i : i + 1], pool, tables[i], length, scale, window)


class TorchFa3:
    """As Fa3Prefill: what is planned lies in memory that a graph reads when it is replayed."""

    launches = 0

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
        self._most = (max_rows, max_chunks)
        self._depth = depth

    def plan(
        self,
        chunks: Chunks,
        max_rows: int,
        max_chunks: int,
        table_width: int,
        per_block: int,
        turn: int,
    ) -> None:
        assert max_rows <= self._most[0]
        assert max_chunks <= self._most[1]
        assert 0 <= turn < self._depth
        arrays = PlanArrays.of(chunks, max_chunks, table_width)
        self._rows, self._tables, self._lengths = (array.tolist() for array in arrays)
        self._max_rows = max_rows

    def run(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        tables: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float,
    ) -> None:
        TorchFa3.launches += 1
        assert tables.is_contiguous()
        assert q.shape[0] == self._max_rows, "planned for a step of another shape"
        flat = tables.view(-1)
        for begin, end, start, length in zip(
            self._rows, self._rows[1:], self._tables, self._lengths, strict=False
        ):
            if begin == end:
                continue
            if not length:
                out[begin:end] = 0.0
                continue
            out[begin:end] = attend(q[begin:end], pool, flat[start:], length, scale)
