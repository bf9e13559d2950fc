# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Qwen 2, 2.5 and 3: biases on queries, keys and values, or normalised queries and keys."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_masks, read_spec, rms_norm, with_masks
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, QkNormSpec


def qwen2_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    spec = _spec(config.with_defaults(num_key_value_heads=32), architecture)
    return spec.with_attention(qkv_bias=True, output_bias=False)


def qwen3_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(head_dim=128, num_key_value_heads=32)
    spec = _spec(config, architecture)
    return spec.with_attention(qk_norm=QkNormSpec(spec.norm))


def _spec(config: ConfigReader, architecture: str) -> ArchSpec:
    spec = read_spec(config, architecture, norm=rms_norm(config))
    if not config.get("use_sliding_window", bool, False):
        config.strings("layer_types", ("full_attention",))
        return spec
    config = config.with_defaults(sliding_window=4096)
    first = config.get("max_window_layers", int, 28)
    return with_masks(spec, read_masks(config, spec.num_layers, lambda index: index >= first))


QWEN2 = Family("Qwen 2, 2.5", ("Qwen2ForCausalLM",), qwen2_spec, llama.WEIGHTS)
QWEN3 = Family("Qwen 3", ("Qwen3ForCausalLM",), qwen3_spec, llama.WEIGHTS)
