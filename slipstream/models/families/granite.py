# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Granite 3: Llama with multipliers."""

from __future__ import annotations

from dataclasses import replace

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm, with_scores
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    spec = read_spec(config, architecture, norm=rms_norm(config))
    return replace(
        with_scores(spec, scale=config.positive_float("attention_multiplier", 1.0)),
        block=BlockSpec(residual_scale=config.positive_float("residual_multiplier", 1.0)),
        embedding_scale=config.positive_float("embedding_multiplier", 1.0),
        logit_scale=1.0 / config.positive_float("logits_scaling", 1.0),
    )


FAMILY = Family("Granite 3", ("GraniteForCausalLM",), arch_spec, llama.WEIGHTS)
