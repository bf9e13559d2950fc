# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX (and Pythia): attention and MLP side by side, each with a norm of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from slipstream.layers.norm import NormSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families.common import read_spec, with_mlp
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec
from slipstream.models.weights import WeightRule, WeightTable


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_names(rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct")
    config = config.with_defaults(
        hidden_act="gelu", attention_bias=True, partial_rotary_factor=0.25
    )
    config.only("num_key_value_heads", config.positive("num_attention_heads"))
    norm = NormSpec(config.positive_float("layer_norm_eps", 1e-5), "layer", bias=True)
    spec = read_spec(config, architecture, norm=norm, partial_rope=True)
    parallel = config.get("use_parallel_residual", bool, True)
    return replace(
        with_mlp(spec, gated=False, bias=True),
        block=BlockSpec(parallel="two_norms" if parallel else "no"),
    )


def _by_kind(tensors: tuple[torch.Tensor, ...], spec: ArchSpec) -> torch.Tensor:
    """From head by head, each its query, key and value, to all queries, keys and values."""
    fused = tensors[0]
    heads = fused.reshape(spec.num_heads, 3, spec.head_dim, *fused.shape[1:])
    return heads.transpose(0, 1).reshape(fused.shape)


_FROM = "gpt_neox.layers.{layer}."
_TO = "layers.{layer}."

WEIGHTS: WeightTable = {
    "embedding": "gpt_neox.embed_in",
    _TO + "attention_norm": _FROM + "input_layernorm",
    _TO + "attention.qkv": WeightRule((_FROM + "attention.query_key_value",), _by_kind),
    _TO + "attention.output": _FROM + "attention.dense",
    _TO + "mlp_norm": _FROM + "post_attention_layernorm",
    _TO + "mlp.up": _FROM + "mlp.dense_h_to_4h",
    _TO + "mlp.down": _FROM + "mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
    "lm_head": WeightRule(("embed_out",), otherwise=WeightRule(("lm_head",))),
}

FAMILY = Family(
    "GPT-NeoX",
    ("GPTNeoXForCausalLM",),
    arch_spec,
    WEIGHTS,
    ignored_tensors=(
        ".attention.bias",
        ".attention.masked_bias",
        ".attention.rotary_emb.inv_freq",
    ),
)
