# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The reference attention: gathers blocks and calls torch's scaled dot product attention.

Single-token sequences of similar length share one padded call; a longer chunk has calls of its
own, tile by tile, so that causality costs no more than half a tile of wasted work. Query heads that
share a KV head become rows (decode) or heads over an expanded view (chunks): keys are never
repeated in memory. Only blocks that a mask lets a step see are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from slipstream.attention.interface import BatchLayout, IntArray, Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache, pools_by_layer
from slipstream.attention.kv_scale import KvScale
from slipstream.attention.preparation import Preparation
from slipstream.attention.softmax import attend
from slipstream.attention.stored_kv import StoredKv, write_rows
from slipstream.attention.tiles import TILE, MaskTemplates, Tile, tiles_of

BlockTable = npt.NDArray[np.int32]  # [seqs, width]

_PAD_BLOCKS = 4  # padding of a decode group that costs less than a call of its own


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences with one token each, padded to the same number of blocks."""

    rows: torch.Tensor | None  # [group] token rows; None = all tokens of the batch, in order
    gather: torch.Tensor  # [planes * group * kv_heads * blocks] rows of StoredKv
    mask: torch.Tensor | None  # [group, 1, 1, positions] additive; None = nothing to mask
    columns: slice  # gathered positions to read


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive tokens of one sequence."""

    gather: torch.Tensor  # [planes * kv_heads * blocks]
    tiles: list[Tile]


@dataclass(frozen=True, slots=True)
class _View:
    """What layers with one mask see of a step."""

    groups: list[_DecodeGroup]
    chunks: list[_Chunk]
    template: torch.Tensor  # of MaskTemplates


class PagedSdpa:
    """Plans batches over the KV caches of a model.

    caches: ``layers[g]`` are the model's layers that the g-th one holds, in its order. num_heads:
    of queries. scores: layer by layer, and so are scales, which FP8 caches need. dtype: of queries;
    that of the caches unless they are FP8.
    """

    def __init__(
        self,
        caches: Sequence[KvCache],
        layers: Sequence[Sequence[int]],
        num_heads: int,
        scores: Sequence[ScoreSpec],
        *,
        dtype: torch.dtype | None = None,
        scales: Sequence[KvScale] | None = None,
    ) -> None:
        self.caches = caches
        self.num_heads = num_heads
        self.shape = caches[0].shape
        self.dtype = dtype or self.shape.dtype
        self.scores, self.value_scales = list(scores), [1.0] * len(scores)
        if scales is not None:
            self.scores = [
                replace(score, scale=score.scale * scale.key)
                for score, scale in zip(scores, scales, strict=True)
            ]
            self.value_scales = [scale.value for scale in scales]
        self.device = caches[0].pool.device
        places = pools_by_layer(caches, layers)
        self.group_of_layer = [group for group, _ in places]
        self.stored = [
            StoredKv(pool, self.dtype, None if scales is None else scales[layer])
            for layer, (_, pool) in enumerate(places)
        ]
        # Layers of one cache may have different masks: a window that no sequence outgrows.
        kinds = [
            (group, score.mask) for group, score in zip(self.group_of_layer, scores, strict=True)
        ]
        self._views = list(dict.fromkeys(kinds))
        self.view_of_layer = [self._views.index(kind) for kind in kinds]
        self._templates = MaskTemplates(self.dtype, self.device)

    def plan(self, batch: BatchLayout) -> PagedSdpaPlan:
        """Computes every index of a step and clears the blocks that it begins but does not fill."""
        last = batch.first_position + batch.num_tokens - 1
        per_block = self.shape.tokens_per_block
        blocks = last // per_block
        begun = (blocks * per_block >= batch.first_position) & ((last + 1) % per_block != 0)
        if begun.any():
            fresh = batch.block_tables[:, begun, blocks[begun]].astype(np.int64)
            for cache, ids in zip(self.caches, fresh, strict=True):
                cache.clear(self._tensor(ids))
        views = [self._view(batch, batch.block_tables[group], mask) for group, mask in self._views]
        tables = batch.block_tables
        writes = [self._tensor(write_rows(self.shape, batch, table)) for table in tables]
        return PagedSdpaPlan(self, writes, views)

    def _view(self, batch: BatchLayout, block_table: BlockTable, mask: Mask) -> _View:
        starts = np.cumsum(batch.num_tokens) - batch.num_tokens
        per_block = self.shape.tokens_per_block
        first_block = mask.first_visible(batch.first_position) // per_block
        end_block = (batch.first_position + batch.num_tokens - 1) // per_block + 1
        chunks = []
        for i in np.flatnonzero(batch.num_tokens > 1):
            table = block_table[i : i + 1, first_block[i] : end_block[i]]
            position, shift = int(batch.first_position[i]), int(first_block[i]) * per_block
            size, row = int(batch.num_tokens[i]), int(starts[i])
            chunks.append(_Chunk(self._gather(table), tiles_of(mask, position, size, row, shift)))
        decodes = np.flatnonzero(batch.num_tokens == 1)
        groups = [
            self._decode_group(batch, block_table, group, starts, mask)
            for group in _similar(decodes, end_block - first_block)
        ]
        longest = max((tile.end - tile.begin for c in chunks for tile in c.tiles), default=0)
        return _View(groups, chunks, self._templates.get(mask, longest))

    def _decode_group(
        self,
        batch: BatchLayout,
        block_table: BlockTable,
        group: IntArray,
        starts: IntArray,
        mask: Mask,
    ) -> _DecodeGroup:
        positions = batch.first_position[group]
        per_block = self.shape.tokens_per_block
        first = mask.first_visible(positions)
        skipped = first // per_block
        used = positions // per_block + 1 - skipped
        width = int(used.max())
        # Any block of the same sequence will do as padding: it is masked, and holds no NaN unless
        # the sequence itself is broken.
        entries = np.arange(width)
        entries = skipped[:, None] + np.where(entries < used[:, None], entries, 0)
        table = np.take_along_axis(block_table[group], entries, axis=1)
        begin, end = first - skipped * per_block, positions + 1 - skipped * per_block
        additive, columns = None, slice(int(begin[0]), int(end[0]))
        if (begin != begin[0]).any() or (end != end[0]).any():
            columns = slice(0, width * per_block)
            position = np.arange(width * per_block)
            visible = (position >= begin[:, None]) & (position < end[:, None])
            additive = self._additive(torch.from_numpy(visible))
        whole = group.size == batch.total_tokens
        rows = None if whole else self._tensor(starts[group])
        return _DecodeGroup(rows, self._gather(table), additive, columns)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype)
        mask = mask.masked_fill_(~visible, float("-inf"))[:, None, None].to(self.device)
        return _aligned(mask)

    def _gather(self, table: np.ndarray) -> torch.Tensor:
        heads, planes = self.shape.num_kv_heads, self.shape.planes
        plane = np.arange(planes)[:, None, None, None]
        head = np.arange(heads)[None, None, :, None]
        rows = (table.astype(np.int64)[None, :, None, :] * planes + plane) * heads + head
        return self._tensor(rows.reshape(-1))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)


class PagedSdpaPlan:
    """One step's indices; see AttentionPlan."""

    def __init__(
        self, backend: PagedSdpa, write_rows: list[torch.Tensor], views: list[_View]
    ) -> None:
        self._backend = backend
        self._write_rows = write_rows  # by cache
        self._views = views
        shape = backend.shape
        self._kv_heads, self._head_dim = shape.num_kv_heads, shape.head_dim
        self._planes, self._value_dim = shape.planes, shape.value_dim
        self._queries_per_kv = backend.num_heads // shape.num_kv_heads

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
        heads = self._backend.num_heads
        write_rows = self._write_rows[self._backend.group_of_layer[layer]]
        self._backend.stored[layer].write(write_rows, qkv[:, heads:])
        queries = qkv[:, :heads].view(-1, self._kv_heads, self._queries_per_kv, self._head_dim)
        attended = self._attend(layer, queries, sinks)
        scale = self._backend.value_scales[layer]
        return attended if scale == 1.0 else attended.mul_(scale)

    def _attend(
        self, layer: int, queries: torch.Tensor, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        view = self._views[self._backend.view_of_layer[layer]]
        if len(view.groups) == 1 and view.groups[0].rows is None:
            return self._decode(layer, view.groups[0], queries, sinks)
        heads = self._backend.num_heads
        out = queries.new_empty((queries.shape[0], heads * self._value_dim))
        for group in view.groups:
            assert group.rows is not None
            out[group.rows] = self._decode(layer, group, queries[group.rows], sinks)
        for chunk in view.chunks:
            self._attend_chunk(layer, view, chunk, queries, sinks, out)
        return out

    def _decode(
        self,
        layer: int,
        group: _DecodeGroup,
        queries: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        size = queries.shape[0]
        keys, values = self._gathered(layer, group.gather, size)
        keys, values = keys[:, :, group.columns], values[:, :, group.columns]
        if sinks is not None:
            sinks = sinks.view(self._kv_heads, self._queries_per_kv, 1)
        scores = self._backend.scores[layer]
        attended = attend(queries, keys, values, scores, mask=group.mask, sinks=sinks)
        return attended.reshape(size, -1)

    def _attend_chunk(
        self,
        layer: int,
        view: _View,
        chunk: _Chunk,
        queries: torch.Tensor,
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        scores = self._backend.scores[layer]
        plain = scores.soft_cap is None and sinks is None
        if sinks is not None:
            sinks = sinks.view(self._kv_heads, self._queries_per_kv, 1, 1)
        keys, values = (
            part.transpose(0, 1).expand(-1, self._queries_per_kv, -1, -1)
            for part in self._gathered(layer, chunk.gather, 1)
        )
        columns = view.template.shape[-1]
        for tile in chunk.tiles:
            seen = tile.end - tile.begin
            causal = tile.is_causal and plain
            mask = None if causal else view.template[TILE - tile.size :, columns - seen :]
            attended = attend(
                queries[tile.row : tile.row + tile.size].permute(1, 2, 0, 3),
                keys[:, :, tile.begin : tile.end],
                values[:, :, tile.begin : tile.end],
                scores,
                mask=None if mask is None else _aligned(mask),
                is_causal=causal,
                sinks=sinks,
            )
            out[tile.row : tile.row + tile.size] = attended.permute(2, 0, 1, 3).flatten(1)

    def _gathered(
        self, layer: int, rows: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values, each ``[size, kv_heads, positions, dim]``."""
        blocks = self._backend.stored[layer].gather(rows)
        planes = blocks.view(self._planes, size, self._kv_heads, -1, self._head_dim)
        return planes[0], planes[-1, ..., : self._value_dim]


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
