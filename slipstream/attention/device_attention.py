# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose kernels attend on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from slipstream.attention.interface import ScoreSpec
from slipstream.attention.kv_cache import KvCache
from slipstream.attention.kv_scale import KvScale
from slipstream.attention.paged_triton import PagedTriton

DeviceAttention = Literal["triton", "flashinfer"]  # ours in the Triton language, or FlashInfer's


def device_attention(
    kernels: DeviceAttention,
    caches: Sequence[KvCache],
    layers: Sequence[Sequence[int]],
    num_heads: int,
    scores: Sequence[ScoreSpec],
    *,
    max_decodes: int,
    max_positions: int,
    max_tokens: int,
    depth: int,
    scales: Sequence[KvScale] | None = None,
) -> PagedTriton:
    """Arguments as of PagedTriton and PagedFlashInfer, which has no FP8 caches."""
    if kernels == "triton":
        return PagedTriton(
            caches,
            layers,
            num_heads,
            scores,
            max_decodes=max_decodes,
            scales=scales,
        )
    assert scales is None
    from slipstream.attention.paged_flashinfer import PagedFlashInfer

    return PagedFlashInfer(
        caches,
        layers,
        num_heads,
        scores,
        max_decodes=max_decodes,
        max_positions=max_positions,
        max_tokens=max_tokens,
        depth=depth,
    )
