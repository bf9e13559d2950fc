# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder is, independent of how its checkpoint spells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from slipstream.attention.interface import ScoreSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.norm import NormSpec
from slipstream.layers.rotary import RopeSpec


@dataclass(frozen=True, slots=True)
class QkNormSpec:
    """Normalised queries and keys.

    ``head``: every head by itself, one weight ``[head_dim]`` for all; ``own``: the same with a
    weight row for each head; ``all``: all heads of a token together.
    """

    norm: NormSpec
    over: Literal["head", "own", "all"] = "head"
    after_rope: bool = False


@dataclass(frozen=True, slots=True)
class TemperatureSpec:
    """Queries at position p are multiplied by ``1 + scale * log(1 + (p + 1) // floor)``."""

    floor: int
    scale: float


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek V2): keys and values unfolded from a short vector."""

    q_lora_rank: int | None
    kv_lora_rank: int
    rope_dim: int
    no_rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention. ``rope`` None: queries and keys know no positions (NoPE)."""

    scores: ScoreSpec
    rope: RopeSpec | None
    qk_norm: QkNormSpec | None = None
    temperature: TemperatureSpec | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    mla: MlaSpec | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    mlp: MlpSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """How a layer's parts are joined.

    ``pre_norm`` normalises what goes into attention and MLP, ``post_norm`` what comes out before it
    joins the residual; both is a sandwich. ``parallel``: attention and MLP read the same residual,
    through one shared norm or two. What joins the residual is multiplied by ``residual_scale``.
    """

    pre_norm: bool = True
    post_norm: bool = False
    parallel: Literal["no", "one_norm", "two_norms"] = "no"
    residual_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """A decoder's shape and numerics.

    ``max_positions`` counts tokens of one sequence; ``learned_positions`` are rows of a position
    embedding (0: none). Embeddings are multiplied by ``embedding_scale``, logits by
    ``logit_scale`` and then soft-capped. ``end_ids`` are the checkpoint's own and ``pad_id`` is -1
    when it has none. ``dtype`` is the checkpoint's (None: not said).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    block: BlockSpec = BlockSpec()
    learned_positions: int = 0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    tie_embeddings: bool = False
    dtype: str | None = None
    end_ids: tuple[int, ...] = ()
    pad_id: int = -1

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def map_layers(self, change: Callable[[int, LayerSpec], LayerSpec]) -> ArchSpec:
        """The same decoder with ``change(index, layer)`` for every layer."""
        layers = tuple(change(index, layer) for index, layer in enumerate(self.layers))
        return replace(self, layers=layers)

    def with_attention(self, **changes: Any) -> ArchSpec:
        """The same decoder with fields of every layer's AttentionSpec changed."""
        return self.map_layers(
            lambda _, layer: replace(layer, attention=replace(layer.attention, **changes))
        )
