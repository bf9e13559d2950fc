# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Mixtral: Mistral with experts."""

from __future__ import annotations

from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm, with_window
from slipstream.models.families.moe import expert_weights, read_experts, with_moe
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(
        num_key_value_heads=8,
        max_position_embeddings=131072,
        num_local_experts=8,
        num_experts_per_tok=2,
        rope_theta=1e6,
    )
    spec = read_spec(config, architecture, norm=rms_norm(config, 1e-5), windows=True)
    spec = with_window(config, spec)
    count, top_k = read_experts(config, "num_local_experts")
    experts = ExpertsSpec(config.positive("intermediate_size"))
    return with_moe(spec, MoeSpec(RouterSpec(count, top_k, renormalise=True), experts))


FAMILY = Family(
    "Mixtral",
    ("MixtralForCausalLM",),
    arch_spec,
    {**llama.WEIGHTS, **expert_weights("block_sparse_moe", gate="w1", up="w3", down="w2")},
)
