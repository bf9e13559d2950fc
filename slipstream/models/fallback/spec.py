# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A transformers model's sizes, from what its layers passed to attention."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.attention.interface import ScoreSpec


@dataclass(frozen=True, slots=True)
class FallbackSpec:
    """See ServedSpec. Layers with fewer or smaller heads leave a part of their cache unused."""

    architecture: str
    vocab_size: int
    max_positions: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scores: tuple[ScoreSpec, ...]
    dtype: str | None
    end_ids: tuple[int, ...]
    pad_id: int

    @property
    def num_layers(self) -> int:
        return len(self.scores)

    @property
    def latent_dim(self) -> int | None:
        return None
