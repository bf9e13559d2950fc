# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder is, independent of how its checkpoint spells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding over the whole head, halves rotated against each other.

    ``linear`` divides every frequency by ``factor``. ``llama3`` divides only the frequencies whose
    wavelength exceeds ``original_max_positions / low_freq_factor`` and blends up to
    ``original_max_positions / high_freq_factor`` (Llama 3.1).
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """A decoder's shape and numerics.

    ``max_positions`` counts tokens of one sequence; ``end_ids`` are the checkpoint's own and
    ``pad_id`` is -1 when it has none. ``dtype`` is the checkpoint's (None: not said).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    dtype: str | None = None
    end_ids: tuple[int, ...] = field(default=())
    pad_id: int = -1


@dataclass(frozen=True, slots=True)
class WeightRule:
    """Where a checkpoint tensor goes.

    ``source`` is the checkpoint's name, with ``{layer}`` for the layer number; ``target`` is the
    decoder's parameter. Several sources may fill one target: they are stacked along the first
    dimension in the order of the table.
    """

    source: str
    target: str

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.source
