# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms after the blocks; queries and keys normalised over all heads together."""

from __future__ import annotations

from dataclasses import replace

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec, QkNormSpec
from slipstream.models.weights import WeightTable


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.only("clip_qkv")
    spec = read_spec(config, architecture, norm=rms_norm(config, 1e-5))
    spec = spec.with_attention(qk_norm=QkNormSpec(spec.norm, over="all"))
    return replace(spec, block=BlockSpec(pre_norm=False, post_norm=True))


WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    "layers.{layer}.attention_post_norm": "model.layers.{layer}.post_attention_layernorm",
    "layers.{layer}.mlp_post_norm": "model.layers.{layer}.post_feedforward_layernorm",
}

FAMILY = Family("OLMo 2", ("Olmo2ForCausalLM",), arch_spec, WEIGHTS)
