# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""GLM-4: sandwich norms, and half of every head rotated in neighbouring pairs."""

from __future__ import annotations

from dataclasses import replace

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec
from slipstream.models.weights import WeightTable


def glm_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(
        head_dim=128, num_key_value_heads=2, partial_rotary_factor=0.5, attention_bias=True
    )
    norm = rms_norm(config, 1.5625e-7)
    spec = read_spec(config, architecture, norm=norm, partial_rope=True, rope_style="interleaved")
    return spec.with_attention(output_bias=False)


def glm4_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    return replace(glm_spec(config, architecture), block=BlockSpec(post_norm=True))


_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."

GLM_WEIGHTS: WeightTable = {**llama.WEIGHTS, _TO + "mlp.gate_up": _FROM + "mlp.gate_up_proj"}
WEIGHTS: WeightTable = {
    **GLM_WEIGHTS,
    _TO + "attention_post_norm": _FROM + "post_self_attn_layernorm",
    _TO + "mlp_post_norm": _FROM + "post_mlp_layernorm",
}

FAMILY = Family("GLM-4", ("Glm4ForCausalLM",), glm4_spec, WEIGHTS)
GLM = Family("GLM-4-9B", ("GlmForCausalLM",), glm_spec, GLM_WEIGHTS)
