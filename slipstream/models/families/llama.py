# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The Llama family: Llama 1 to 3.3 and checkpoints in its format."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families.common import read_spec, rms_norm
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightTable, stack

_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."

# Most families spell their checkpoints this way and differ in a line or two.
WEIGHTS: WeightTable = {
    "embedding": "model.embed_tokens",
    _TO + "attention_norm": _FROM + "input_layernorm",
    _TO + "attention.qkv": stack(
        _FROM + "self_attn.q_proj", _FROM + "self_attn.k_proj", _FROM + "self_attn.v_proj"
    ),
    _TO + "attention.q_norm": _FROM + "self_attn.q_norm",
    _TO + "attention.k_norm": _FROM + "self_attn.k_norm",
    _TO + "attention.output": _FROM + "self_attn.o_proj",
    _TO + "mlp_norm": _FROM + "post_attention_layernorm",
    _TO + "mlp.gate_up": stack(_FROM + "mlp.gate_proj", _FROM + "mlp.up_proj"),
    _TO + "mlp.down": _FROM + "mlp.down_proj",
    "norm": "model.norm",
    "lm_head": "lm_head",
}

# Buffers that old exports saved; they follow from the configuration.
IGNORED_TENSORS = (".rotary_emb.inv_freq",)


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.only("sliding_window")
    return read_spec(config, architecture, norm=rms_norm(config))


FAMILY = Family("Llama 1 to 3.3", ("LlamaForCausalLM",), arch_spec, WEIGHTS, IGNORED_TENSORS)
