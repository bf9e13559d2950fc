# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Paged attention on an NVIDIA GPU, by kernels that read a batch's layout from device memory.

Nothing of a plan is computed on the host, so that a CUDA graph can replay a step for whatever its
buffers hold by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.attention.interface import Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache, pools_by_layer
from slipstream.attention.kv_scale import FP8, UNSCALED, KvScale
from slipstream.attention.preparation import Preparation, QkNorms
from slipstream.kernels.decode_schedule import (
    DecodeSchedule,
    decode_schedule,
    schedule_decodes,
)
from slipstream.kernels.flashinfer_calls import Chunks
from slipstream.kernels.paged_decode import (
    DecodeWorkspace,
    decode_attention,
    decode_programs,
    decode_tile,
    decode_workspace,
    most_streamed,
    streams_decode,
)
from slipstream.kernels.paged_prefill import prefill_attention, tile_tokens
from slipstream.kernels.qkv import Unprepared, prepare_qkv


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """The layout of a batch, all of it on the device.

    Sequences of one token are ``decode_rows`` of the batch; longer chunks are cut into tiles of at
    most ``PagedTriton.tile_tokens`` rows. Slots are rows of ``block_tables``. A row or a tile of -1
    is padding, and so is a write slot of -1.
    """

    positions: torch.Tensor  # int32 [tokens]
    write_slots: torch.Tensor  # int64 [caches, tokens] block * tokens_per_block + offset
    block_tables: torch.Tensor  # int32 [caches, slots, blocks]
    decode_rows: torch.Tensor  # int32 [decodes]
    decode_slots: torch.Tensor
    tile_rows: torch.Tensor  # int32 [tiles] first row of each
    tile_sizes: torch.Tensor
    tile_slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """What one of the kernels for single tokens reads besides a batch. Steps run one after the
    other: it serves all of them. most: sequences that it has room for. tile: see ``decode_tile``.
    """

    most: int
    tile: int
    schedules: dict[Mask, DecodeSchedule]
    workspace: DecodeWorkspace

    @property
    def streamed(self) -> bool:
        return all(schedule.streamed for schedule in self.schedules.values())


class PagedTriton:
    """Plans batches over the KV caches of a model.

    Arguments as of PagedSdpa; keys and values must be cached apart. max_decodes: sequences of one
    token in a batch, at most.
    """

    def __init__(
        self,
        caches: Sequence[KvCache],
        layers: Sequence[Sequence[int]],
        num_heads: int,
        scores: Sequence[ScoreSpec],
        *,
        max_decodes: int,
        scales: Sequence[KvScale] | None = None,
    ) -> None:
        shape = caches[0].shape
        assert shape.latent_dim is None
        self.num_heads = num_heads
        self.num_kv_heads = shape.num_kv_heads
        self.head_dim = shape.head_dim
        self.scores = list(scores)
        self.scales = [UNSCALED] * len(scores) if scales is None else list(scales)
        assert (shape.dtype == FP8) == (scales is not None)
        self.tile_tokens = tile_tokens(num_heads, shape.num_kv_heads)
        self.places = pools_by_layer(caches, layers)
        pool = self.places[0][1]
        num_sms = torch.cuda.get_device_properties(pool.device).multi_processor_count
        few = most_streamed(self.num_kv_heads, num_sms) if streams_decode(num_heads, pool) else 0
        sizes = {True: min(few, max_decodes)} if few else {}
        if few < max_decodes:
            sizes[False] = max_decodes
        self._decode_kernels = [
            self._decode_kernel(most, num_sms, pool.device, streamed=streamed)
            for streamed, most in sizes.items()
        ]

    def _decode_kernel(
        self, most: int, num_sms: int, device: torch.device, *, streamed: bool
    ) -> DecodeKernel:
        programs = decode_programs(num_sms, streamed)
        schedules = {
            score.mask: decode_schedule(
                most, self.num_kv_heads, programs, num_sms, device, streamed=streamed
            )
            for score in self.scores
        }
        workspace = decode_workspace(next(iter(schedules.values())), self.num_heads, self.head_dim)
        return DecodeKernel(most, decode_tile(self.head_dim, streamed), schedules, workspace)

    def decode_kernel(self, batch: DeviceBatch) -> DecodeKernel:
        """The one for the single tokens of a batch."""
        count = batch.decode_rows.shape[0]
        return next(kernel for kernel in self._decode_kernels if count <= kernel.most)

    def stage_chunks(self, sequences: Chunks, max_tokens: int, turn: int) -> None:
        """What the host has to enqueue before a step with chunks: nothing.

        sequences: all of the step, those of single tokens too. max_tokens: of the step, padding
        included. A graph of a step serves those that are staged with the same number. turn: of the
        host's buffers, see Staging.
        """

    def plan(self, batch: DeviceBatch) -> PagedTritonPlan:
        self._schedule(batch)
        return PagedTritonPlan(self, batch)

    def _schedule(self, batch: DeviceBatch) -> None:
        """Enqueues the schedules of the batch's single tokens, for every mask."""
        if not batch.decode_rows.shape[0]:
            return
        kernel = self.decode_kernel(batch)
        for mask, schedule in kernel.schedules.items():
            schedule_decodes(
                batch.decode_rows,
                batch.decode_slots,
                batch.positions,
                schedule,
                tile=kernel.tile,
                mask_kind=mask.kind,
                mask_size=mask.size,
            )


class PagedTritonPlan:
    """A batch in device memory; see AttentionPlan."""

    def __init__(self, backend: PagedTriton, batch: DeviceBatch) -> None:
        self._backend = backend
        self._batch = batch
        self._decode_kernel = backend.decode_kernel(batch)

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        """See AttentionPlan.run."""
        queries, out = self._queries_and_result(qkv)
        if self._streamed_alone():
            new = Unprepared(**self._preparing(layer, qkv, preparation))
            self._decode(layer, queries, out, sinks, new)
            return out
        self._store(layer, qkv, preparation)
        if self._batch.decode_rows.shape[0]:
            self._decode(layer, queries, out, sinks)
        if self._batch.tile_rows.shape[0]:
            self._prefill(layer, queries, out, sinks)
        return out

    def _queries_and_result(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = self._backend.num_heads
        return qkv[:, :heads], qkv.new_empty((qkv.shape[0], heads * self._backend.head_dim))

    def _streamed_alone(self) -> bool:
        """Whether all are single tokens of the kernel that stores their KV itself. It may: none of
        them has a block that another one writes to (executor/step.h)."""
        batch = self._batch
        alone = batch.decode_rows.shape[0] > 0 and not batch.tile_rows.shape[0]
        return alone and self._decode_kernel.streamed

    def _decode(
        self,
        layer: int,
        queries: torch.Tensor,
        out: torch.Tensor,
        sinks: torch.Tensor | None,
        new: Unprepared | None = None,
    ) -> None:
        group, pool = self._backend.places[layer]
        kernel = self._decode_kernel
        decode_attention(
            queries,
            pool,
            self._batch.block_tables[group],
            out,
            kernel.workspace,
            kernel.schedules[self._backend.scores[layer].mask],
            n=self._batch.decode_rows.shape[0],
            sinks=sinks,
            new=new,
            **self._options(layer),
        )

    def _prefill(
        self, layer: int, queries: torch.Tensor, out: torch.Tensor, sinks: torch.Tensor | None
    ) -> None:
        group, pool = self._backend.places[layer]
        batch = self._batch
        prefill_attention(
            queries,
            pool,
            batch.block_tables[group],
            batch.tile_rows,
            batch.tile_sizes,
            batch.tile_slots,
            batch.positions,
            out,
            sinks=sinks,
            **self._options(layer),
        )

    def _options(self, layer: int) -> dict[str, Any]:
        scores, scale = self._backend.scores[layer], self._backend.scales[layer]
        return {
            "scale": scores.scale,
            "mask_kind": scores.mask.kind,
            "mask_size": scores.mask.size,
            "soft_cap": scores.soft_cap,
            "key_scale": scale.key,
            "value_scale": scale.value,
        }

    def _store(
        self,
        layer: int,
        qkv: torch.Tensor,
        preparation: Preparation | None,
        q_out: torch.Tensor | None = None,
    ) -> None:
        prepare_qkv(
            qkv,
            self._backend.places[layer][1],
            **self._preparing(layer, qkv, preparation),
            kv_heads=self._backend.num_kv_heads,
            key_scale=self._backend.scales[layer].key,
            value_scale=self._backend.scales[layer].value,
            q_out=q_out,
        )

    def _preparing(
        self, layer: int, qkv: torch.Tensor, preparation: Preparation | None
    ) -> dict[str, Any]:
        """The fields of an Unprepared. What no kernel computes of it is done in qkv."""
        group, _ = self._backend.places[layer]
        options: dict[str, Any] = {"write_slots": self._batch.write_slots[group]}
        if preparation is None:
            return options
        if not _fusable(preparation.norms):
            preparation.apply_(qkv)
            return options
        norms = preparation.norms
        cos, sin = (None, None) if preparation.rope is None else preparation.rope
        return {
            **options,
            "cos": cos,
            "sin": sin,
            "style": preparation.style,
            "q_norm": None if norms is None else norms.queries.weight,
            "k_norm": None if norms is None else norms.keys.weight,
            "eps": 0.0 if norms is None else norms.queries.eps,
            "norm_after_rope": norms is not None and norms.after_rope,
            "q_factor": preparation.factor,
        }


def _fusable(norms: QkNorms | None) -> bool:
    """Whether the kernel computes these: root mean squares of single heads, one weight for all."""
    if norms is None:
        return True
    return norms.over == "head" and all(
        norm.is_rms and norm.weight is not None for norm in (norms.queries, norms.keys)
    )
