# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The reference attention: gathers blocks and calls torch's scaled dot product attention.

Single-token sequences of similar length share one padded call; a longer chunk has calls of its
own, tile by tile, so that causality costs no more than half a tile of wasted work. Query heads that
share a KV head become rows (decode) or heads over an expanded view (chunks): keys are never
repeated in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from slipstream.attention.interface import BatchLayout, IntArray
from slipstream.attention.kv_cache import KvCache

_TILE = 256  # query rows of a chunk a call
_PAD_BLOCKS = 4  # padding of a decode group that costs less than a call of its own


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences with one token each, padded to the same number of blocks."""

    rows: torch.Tensor | None  # [group] token rows; None = all tokens of the batch, in order
    gather: torch.Tensor  # [2 * group * kv_heads * blocks] rows of (tokens_per_block * head_dim)
    mask: torch.Tensor | None  # [group, 1, 1, positions] additive; None = nothing to mask
    length: int  # positions to read


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive tokens of one sequence."""

    start: int  # first token row
    size: int
    first_position: int
    gather: torch.Tensor  # [2 * kv_heads * blocks]


class PagedSdpa:
    """Plans batches over one KV cache; ``num_heads`` query heads."""

    def __init__(self, cache: KvCache, num_heads: int) -> None:
        self.cache = cache
        self.num_heads = num_heads
        self.device = cache.pool.device
        layers = [cache.pool[layer] for layer in range(cache.shape.num_layers)]
        self.position_rows = [layer.view(-1, cache.shape.head_dim) for layer in layers]
        self.block_rows = [layer.view(-1, self._block_elements) for layer in layers]
        self._causal = torch.empty(0)

    @property
    def _block_elements(self) -> int:
        return self.cache.shape.tokens_per_block * self.cache.shape.head_dim

    def plan(self, batch: BatchLayout) -> PagedSdpaPlan:
        """Computes every index of a step and clears the blocks that it begins but does not fill."""
        last = batch.first_position + batch.num_tokens - 1
        per_block = self.cache.shape.tokens_per_block
        blocks = last // per_block
        begun = (blocks * per_block >= batch.first_position) & ((last + 1) % per_block != 0)
        if begun.any():
            self.cache.clear(self._tensor(batch.block_table[begun, blocks[begun]].astype(np.int64)))
        starts = np.cumsum(batch.num_tokens) - batch.num_tokens
        decodes = np.flatnonzero(batch.num_tokens == 1)
        chunks = [
            _Chunk(
                start=int(starts[i]),
                size=int(batch.num_tokens[i]),
                first_position=int(batch.first_position[i]),
                gather=self._gather(batch.block_table[i : i + 1, : blocks[i] + 1]),
            )
            for i in np.flatnonzero(batch.num_tokens > 1)
        ]
        groups = [
            self._decode_group(batch, group, starts) for group in _similar(decodes, blocks + 1)
        ]
        longest = max((c.first_position + c.size for c in chunks), default=0)
        return PagedSdpaPlan(
            self, self._tensor(self._write_rows(batch)), groups, chunks, self._causal_mask(longest)
        )

    def _decode_group(self, batch: BatchLayout, group: IntArray, starts: IntArray) -> _DecodeGroup:
        lengths = batch.first_position[group] + 1
        per_block = self.cache.shape.tokens_per_block
        used = -(-lengths // per_block)
        width = int(used.max())
        table = batch.block_table[group, :width]
        # Any block of the same sequence will do as padding: it is masked, and holds no NaN unless
        # the sequence itself is broken.
        table = np.where(np.arange(width) < used[:, None], table, table[:, :1])
        mask = None
        padded = int(lengths.max())
        if int(lengths.min()) != padded:
            padded = width * per_block
            visible = torch.from_numpy(np.arange(padded) < lengths[:, None])
            mask = torch.zeros(visible.shape, dtype=self.cache.shape.dtype)
            mask = mask.masked_fill_(~visible, float("-inf"))[:, None, None].to(self.device)
            mask = _aligned(mask)
        whole = group.size == batch.total_tokens
        rows = None if whole else self._tensor(starts[group])
        return _DecodeGroup(rows, self._gather(table), mask, padded)

    def _gather(self, table: np.ndarray) -> torch.Tensor:
        heads = self.cache.shape.num_kv_heads
        key_or_value = np.arange(2)[:, None, None, None]
        head = np.arange(heads)[None, None, :, None]
        rows = (table.astype(np.int64)[None, :, None, :] * 2 + key_or_value) * heads + head
        return self._tensor(rows.reshape(-1))

    def _write_rows(self, batch: BatchLayout) -> IntArray:
        """Where each token's keys and values go: ``[tokens, 2 * kv_heads]`` rows of head_dim."""
        shape = self.cache.shape
        sequence = np.repeat(np.arange(batch.num_tokens.size), batch.num_tokens)
        within = np.arange(sequence.size) - np.repeat(
            np.cumsum(batch.num_tokens) - batch.num_tokens, batch.num_tokens
        )
        positions = batch.first_position[sequence] + within
        blocks = batch.block_table[sequence, positions // shape.tokens_per_block].astype(np.int64)
        heads = blocks[:, None] * (2 * shape.num_kv_heads) + np.arange(2 * shape.num_kv_heads)
        rows: IntArray = heads * shape.tokens_per_block
        rows += (positions % shape.tokens_per_block)[:, None]
        return rows

    def _causal_mask(self, length: int) -> torch.Tensor:
        """``[_TILE, at least length]``: row r sees all but the last ``_TILE - 1 - r`` columns.

        Its lower right corners serve every tile of every chunk.
        """
        if self._causal.numel() < _TILE * length:
            columns = max(length, _TILE, 2 * self._causal.shape[-1])
            mask = torch.full((_TILE, columns), float("-inf"), dtype=self.cache.shape.dtype)
            self._causal = mask.triu_(columns - _TILE + 1).to(self.device)
        return self._causal

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)


class PagedSdpaPlan:
    """One step's indices; see AttentionPlan."""

    def __init__(
        self,
        backend: PagedSdpa,
        write_rows: torch.Tensor,
        groups: list[_DecodeGroup],
        chunks: list[_Chunk],
        causal: torch.Tensor,
    ) -> None:
        self._backend = backend
        self._write_rows = write_rows
        self._groups = groups
        self._chunks = chunks
        self._causal = causal
        shape = backend.cache.shape
        self._kv_heads, self._head_dim = shape.num_kv_heads, shape.head_dim
        self._queries_per_kv = backend.num_heads // shape.num_kv_heads

    def run(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See AttentionPlan.run."""
        heads = self._backend.num_heads
        self._backend.position_rows[layer][self._write_rows] = qkv[:, heads:]
        queries = qkv[:, :heads].view(-1, self._kv_heads, self._queries_per_kv, self._head_dim)
        blocks = self._backend.block_rows[layer]
        if len(self._groups) == 1 and self._groups[0].rows is None:
            return self._decode(blocks, self._groups[0], queries)
        out = qkv.new_empty((qkv.shape[0], heads * self._head_dim))
        for group in self._groups:
            assert group.rows is not None
            out[group.rows] = self._decode(blocks, group, queries[group.rows])
        for chunk in self._chunks:
            self._attend_chunk(blocks, chunk, queries, out)
        return out

    def _decode(
        self, blocks: torch.Tensor, group: _DecodeGroup, queries: torch.Tensor
    ) -> torch.Tensor:
        size = queries.shape[0]
        pair = blocks.index_select(0, group.gather).view(
            2, size, self._kv_heads, -1, self._head_dim
        )
        keys, values = pair[0, :, :, : group.length], pair[1, :, :, : group.length]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask)
        return attended.reshape(size, -1)

    def _attend_chunk(
        self, blocks: torch.Tensor, chunk: _Chunk, queries: torch.Tensor, out: torch.Tensor
    ) -> None:
        pair = blocks.index_select(0, chunk.gather).view(2, self._kv_heads, 1, -1, self._head_dim)
        pair = pair.expand(-1, -1, self._queries_per_kv, -1, -1)
        columns = self._causal.shape[-1]
        for begin in range(0, chunk.size, _TILE):
            size = min(_TILE, chunk.size - begin)
            rows = slice(chunk.start + begin, chunk.start + begin + size)
            seen = chunk.first_position + begin + size
            whole = seen == size
            attended = F.scaled_dot_product_attention(
                queries[rows].permute(1, 2, 0, 3),
                pair[0, :, :, :seen],
                pair[1, :, :, :seen],
                attn_mask=(
                    None if whole else _aligned(self._causal[_TILE - size :, columns - seen :])
                ),
                is_causal=whole,
            )
            out[rows] = attended.permute(2, 0, 1, 3).reshape(size, -1)


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """The mask with every row where CUDA's kernels can read it: 16 bytes at a time."""
    if mask.device.type != "cuda":
        return mask
    columns = mask.shape[-1]
    rows = mask.new_empty((*mask.shape[:-1], -(-columns // 16) * 16))
    return rows[..., :columns].copy_(mask)


def _similar(sequences: IntArray, blocks: IntArray) -> list[IntArray]:
    """Splits sequences into groups of similar numbers of blocks, each in ascending order."""
    ordered = sequences[np.argsort(-blocks[sequences], kind="stable")]
    groups: list[IntArray] = []
    start = 0
    while start < ordered.size:
        width = int(blocks[ordered[start]])
        least = width - max(_PAD_BLOCKS, width // 4)
        end = start + int(np.count_nonzero(blocks[ordered[start:]] >= least))
        groups.append(np.sort(ordered[start:end]))
        start = end
    return groups
