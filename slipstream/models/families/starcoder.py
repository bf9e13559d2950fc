# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""StarCoder 2: LayerNorm, plain MLPs, biases everywhere, a window."""

from __future__ import annotations

from slipstream.layers.norm import NormSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, with_mlp, with_window
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightTable


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(
        hidden_act="gelu_pytorch_tanh",
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    bias = config.get("use_bias", bool, True)
    norm = NormSpec(config.positive_float("norm_epsilon", 1e-5), "layer", bias=True)
    spec = with_mlp(read_spec(config, architecture, norm=norm), gated=False, bias=bias)
    return with_window(config, spec.with_attention(qkv_bias=bias, output_bias=bias))


WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    "layers.{layer}.mlp.up": "model.layers.{layer}.mlp.c_fc",
    "layers.{layer}.mlp.down": "model.layers.{layer}.mlp.c_proj",
}

FAMILY = Family("StarCoder 2", ("Starcoder2ForCausalLM",), arch_spec, WEIGHTS)
