# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Cohere (Command R, R+) and Cohere 2 (Command R7B, A): attention and MLP side by side."""

from __future__ import annotations

from dataclasses import replace

from slipstream.layers.norm import NormSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import (
    is_full,
    read_masks,
    read_spec,
    with_masks,
    without_rope,
)
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec, QkNormSpec


def cohere_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(rope_theta=500000.0)
    spec = _spec(config, architecture)
    if config.get("use_qk_norm", bool, False):
        spec = spec.with_attention(qk_norm=QkNormSpec(spec.norm, over="own"))
    return spec


def cohere2_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(sliding_window=4096)
    spec = _spec(config, architecture)
    pattern = config.positive("sliding_window_pattern", 4)
    masks = read_masks(config, spec.num_layers, lambda index: (index + 1) % pattern != 0)
    return without_rope(with_masks(spec, masks), is_full)


def _spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(tie_word_embeddings=True)
    norm = NormSpec(config.positive_float("layer_norm_eps", 1e-5), "layer")
    spec = read_spec(config, architecture, norm=norm, rope_style="interleaved")
    return replace(
        spec,
        block=BlockSpec(parallel="one_norm"),
        logit_scale=config.positive_float("logit_scale", 0.0625),
    )


COHERE = Family("Cohere", ("CohereForCausalLM",), cohere_spec, llama.WEIGHTS)
COHERE2 = Family("Cohere 2", ("Cohere2ForCausalLM",), cohere2_spec, llama.WEIGHTS)
