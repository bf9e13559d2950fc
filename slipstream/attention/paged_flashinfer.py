# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Paged attention by FlashInfer where it has kernels for it, and by ours beside them.

A step of single tokens is FlashInfer's ``xqa``, which needs nothing of the host. It reads queries
of consecutive sequences, so our kernel leaves them apart from keys and values. In a step with
chunks these are FlashAttention 3's; its rows of single tokens lie anywhere, and are our kernel's,
which reads them where they are. So are chunks of layers with a window: FlashAttention 3 multiplies
what it reads below a window by zero, and blocks there may be another sequence's by now, whose NaN
must not spread. For ``xqa``, page tables are made anew, without those blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from slipstream.attention.interface import FULL, Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache
from slipstream.attention.paged_triton import DeviceBatch, PagedTriton, PagedTritonPlan
from slipstream.attention.preparation import Preparation
from slipstream.kernels.flashinfer_calls import Chunks, Fa3Prefill, XqaDecode
from slipstream.kernels.page_tables import gather_tables

View = tuple[int, Mask]  # the cache of a layer, by index, and the layer's mask


class PagedFlashInfer(PagedTriton):
    """Plans batches over the KV caches of a model: bfloat16, without soft caps, sinks and chunked
    masks. See flashinfer_calls for the sizes that it serves.

    Arguments as of PagedTriton. max_positions: of a sequence. max_tokens: of a step, padding
    included. depth: steps whose host buffers are kept apart.
    """

    def __init__(
        self,
        caches: Sequence[KvCache],
        layers: Sequence[Sequence[int]],
        num_heads: int,
        scores: Sequence[ScoreSpec],
        *,
        max_decodes: int,
        max_positions: int,
        max_tokens: int,
        depth: int,
    ) -> None:
        super().__init__(
            caches,
            layers,
            num_heads,
            scores,
            max_decodes=max_decodes,
        )
        shape, device = caches[0].shape, caches[0].pool.device
        self.per_block = shape.tokens_per_block
        self.table_width = -(-max_positions // shape.tokens_per_block)
        self.view_of_layer: list[View] = [
            (group, score.mask) for (group, _), score in zip(self.places, scores, strict=True)
        ]
        self.xqa = XqaDecode(max_decodes, shape.num_kv_heads, device)
        self.page_tables = {
            view: torch.zeros((max_decodes, self.table_width), dtype=torch.int32, device=device)
            for view in dict.fromkeys(self.view_of_layer)
        }
        self.lengths = torch.ones(max_decodes, dtype=torch.int32, device=device)
        self.fa3: Fa3Prefill | None = None
        self._max_chunks = max_decodes
        if any(score.mask == FULL for score in scores):
            self.fa3 = Fa3Prefill(
                num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                max_rows=max_tokens,
                max_chunks=min(max_tokens, max_decodes),
                depth=depth,
                device=device,
            )

    def stage_chunks(self, sequences: Chunks, max_tokens: int, turn: int) -> None:
        """See PagedTriton: FlashAttention 3's plan, which all layers share."""
        if self.fa3 is not None:
            longer = np.flatnonzero(sequences.sizes > 1)
            chunks = Chunks(*(column[longer] for column in sequences))
            most = min(max_tokens, self._max_chunks)
            self.fa3.plan(chunks, max_tokens, most, self.table_width, self.per_block, turn)

    def plan(self, batch: DeviceBatch) -> PagedTritonPlan:
        """Rows of a batch without tiles are its sequences, in order, and then padding."""
        assert batch.block_tables.shape[2] == self.table_width
        if batch.tile_rows.shape[0]:
            self._schedule(batch)
            return _MixedPlan(self, batch)
        count = batch.decode_rows.shape[0]
        for (group, mask), tables in self.page_tables.items():
            gather_tables(
                batch.block_tables[group],
                batch.decode_rows,
                batch.decode_slots,
                batch.positions,
                tables[:count],
                self.lengths[:count],
                per_block=self.per_block,
                mask_kind=mask.kind,
                mask_size=mask.size,
            )
        return _DecodePlan(self, batch)


class _DecodePlan(PagedTritonPlan):
    """One token of each sequence."""

    _backend: PagedFlashInfer

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        """See AttentionPlan.run."""
        assert sinks is None
        backend = self._backend
        shape = (qkv.shape[0], backend.num_heads, backend.head_dim)
        queries, out = qkv.new_empty(shape), qkv.new_empty(shape)
        self._store(layer, qkv, preparation, q_out=queries)
        view = backend.view_of_layer[layer]
        backend.xqa.run(
            queries,
            backend.places[layer][1],
            backend.page_tables[view][: shape[0]],
            backend.lengths[: shape[0]],
            out,
            scale=backend.scores[layer].scale,
            window=view[1].size,
        )
        return out.flatten(1)


class _MixedPlan(PagedTritonPlan):
    """Chunks, and single tokens anywhere among them."""

    _backend: PagedFlashInfer

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        """See AttentionPlan.run."""
        assert sinks is None
        backend = self._backend
        group, mask = backend.view_of_layer[layer]
        if mask != FULL or backend.fa3 is None:
            return super().run(layer, qkv, sinks, preparation)
        self._store(layer, qkv, preparation)
        queries, out = self._queries_and_result(qkv)
        backend.fa3.run(
            queries,
            backend.places[layer][1],
            self._batch.block_tables[group],
            out.view(queries.shape),
            scale=backend.scores[layer].scale,
        )
        # After the chunks: rows between them have zeros by now.
        if self._batch.decode_rows.shape[0]:
            self._decode(layer, queries, out, sinks)
        return out
