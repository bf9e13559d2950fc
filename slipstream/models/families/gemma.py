# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 and 3 (text): sandwich norms by 1 + w, scaled embeddings, windows on most layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from slipstream.layers.norm import NormSpec
from slipstream.layers.rotary import RopeSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import (
    is_full,
    read_masks,
    read_spec,
    with_masks,
    with_scores,
)
from slipstream.models.families.rope import read_rope, rope_fields
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec, LayerSpec, QkNormSpec
from slipstream.models.weights import WeightRule, WeightTable


def gemma2_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    spec = _spec(config, architecture, pattern=2)
    return with_scores(spec, soft_cap=config.optional_float("attn_logit_softcapping"))


def gemma3_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.has_only("attn_logit_softcapping")
    config = config.with_defaults(rope_theta=1e6, max_position_embeddings=131072)
    pattern = config.positive("sliding_window_pattern", 6)
    # Rotations differ by layer, and the checkpoint's limit already counts what they stretch.
    spec = _spec(config, architecture, pattern=pattern, rope=False)
    spec = spec.with_attention(qk_norm=QkNormSpec(spec.norm))
    full, local = _ropes(config, spec.head_dim)

    def rotated(index: int, layer: LayerSpec) -> LayerSpec:
        rope = full if is_full(index, layer) else local
        return replace(layer, attention=replace(layer.attention, rope=rope))

    return spec.map_layers(rotated)


def _spec(config: ConfigReader, architecture: str, *, pattern: int, rope: bool = True) -> ArchSpec:
    config.has_only("use_bidirectional_attention", False)
    config = config.with_names(hidden_act="hidden_activation").with_defaults(
        head_dim=256,
        num_key_value_heads=4,
        hidden_act="gelu_pytorch_tanh",
        sliding_window=4096,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    norm = NormSpec(config.positive_float("rms_norm_eps", 1e-6), float32_weight=True)
    spec = read_spec(config, architecture, norm=norm, windows=True, rope=rope)
    spec = with_scores(spec, scale=config.positive_float("query_pre_attn_scalar", 256.0) ** -0.5)
    masks = read_masks(config, spec.num_layers, lambda index: (index + 1) % pattern != 0)
    return replace(
        with_masks(spec, masks),
        block=BlockSpec(post_norm=True),
        embedding_scale=spec.hidden_size**0.5,
        logit_soft_cap=config.optional_float("final_logit_softcapping"),
    )


def _ropes(config: ConfigReader, head_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Of layers that see everything, and of those with a window."""
    full = read_rope(config, head_dim, layer_type="full_attention")
    if rope_fields(config).has("sliding_attention"):
        return full, read_rope(config, head_dim, layer_type="sliding_attention")
    return full, RopeSpec(config.positive_float("rope_local_base_freq", 10000.0), head_dim)


def _one_plus(tensors: tuple[torch.Tensor, ...], spec: ArchSpec) -> torch.Tensor:
    return 1.0 + tensors[0].float()


def _norm(name: str) -> WeightRule:
    return WeightRule((name,), _one_plus)


_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."

WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    _TO + "attention_norm": _norm(_FROM + "input_layernorm"),
    _TO + "attention_post_norm": _norm(_FROM + "post_attention_layernorm"),
    _TO + "mlp_norm": _norm(_FROM + "pre_feedforward_layernorm"),
    _TO + "mlp_post_norm": _norm(_FROM + "post_feedforward_layernorm"),
    _TO + "attention.q_norm": _norm(_FROM + "self_attn.q_norm"),
    _TO + "attention.k_norm": _norm(_FROM + "self_attn.k_norm"),
    "norm": _norm("model.norm"),
}

GEMMA2 = Family("Gemma 2", ("Gemma2ForCausalLM",), gemma2_spec, WEIGHTS)
GEMMA3 = Family("Gemma 3 (text)", ("Gemma3ForCausalLM",), gemma3_spec, WEIGHTS)
