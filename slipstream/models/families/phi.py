# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-4: Llama with fused projections and partial rotation."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm, with_window
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightTable


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.only("attention_bias", False)
    spec = read_spec(config, architecture, norm=rms_norm(config, 1e-5), partial_rope=True)
    return with_window(config, spec)


WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    "layers.{layer}.attention.qkv": "model.layers.{layer}.self_attn.qkv_proj",
    "layers.{layer}.mlp.gate_up": "model.layers.{layer}.mlp.gate_up_proj",
}

FAMILY = Family("Phi-3, Phi-4", ("Phi3ForCausalLM",), arch_spec, WEIGHTS)
