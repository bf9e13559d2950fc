# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, LayerNorm, plain MLPs, matrices stored the other way round."""

from __future__ import annotations

from dataclasses import replace

import torch

from slipstream.layers.norm import NormSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families.common import read_spec, with_mlp, with_scores
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, LayerSpec
from slipstream.models.weights import WeightRule, WeightTable


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.only("add_cross_attention", False)
    config = config.with_names(
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
        hidden_act="activation_function",
    ).with_defaults(hidden_act="gelu_new", max_position_embeddings=1024, tie_word_embeddings=True)
    if not config.has("intermediate_size"):
        config = config.with_values(intermediate_size=4 * config.positive("hidden_size"))
    norm = NormSpec(config.positive_float("layer_norm_epsilon", 1e-5), "layer", bias=True)
    spec = with_mlp(read_spec(config, architecture, norm=norm, rope=False), gated=False, bias=True)
    spec = spec.with_attention(qkv_bias=True, output_bias=True)
    if not config.get("scale_attn_weights", bool, True):
        spec = with_scores(spec, scale=1.0)
    if config.get("scale_attn_by_inverse_layer_idx", bool, False):
        spec = spec.map_layers(_scaled_by_depth)
    return replace(spec, learned_positions=spec.max_positions)


def _scaled_by_depth(index: int, layer: LayerSpec) -> LayerSpec:
    scores = layer.attention.scores
    scores = replace(scores, scale=scores.scale / (index + 1))
    return replace(layer, attention=replace(layer.attention, scores=scores))


def _transposed(tensors: tuple[torch.Tensor, ...], spec: ArchSpec) -> torch.Tensor:
    return tensors[0].t()  # biases stay as they are


def _matrix(name: str) -> WeightRule:
    return WeightRule((name,), _transposed)


_FROM = "transformer.h.{layer}."
_TO = "layers.{layer}."

WEIGHTS: WeightTable = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    _TO + "attention_norm": _FROM + "ln_1",
    _TO + "attention.qkv": _matrix(_FROM + "attn.c_attn"),
    _TO + "attention.output": _matrix(_FROM + "attn.c_proj"),
    _TO + "mlp_norm": _FROM + "ln_2",
    _TO + "mlp.up": _matrix(_FROM + "mlp.c_fc"),
    _TO + "mlp.down": _matrix(_FROM + "mlp.c_proj"),
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}

FAMILY = Family(
    "GPT-2",
    ("GPT2LMHeadModel",),
    arch_spec,
    WEIGHTS,
    ignored_tensors=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
)
