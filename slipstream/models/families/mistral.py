# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama with a sliding window, where the checkpoint says so."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm, with_window
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(sliding_window=4096, num_key_value_heads=8)
    config.only("attention_bias", False)
    return with_window(config, read_spec(config, architecture, norm=rms_norm(config)))


FAMILY = Family("Mistral", ("MistralForCausalLM",), arch_spec, llama.WEIGHTS, llama.IGNORED_TENSORS)
