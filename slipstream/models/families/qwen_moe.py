# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2-MoE, with shared experts behind a gate, and Qwen3-MoE, with normalised queries and keys."""

from __future__ import annotations

from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm, with_window
from slipstream.models.families.moe import (
    expert_weights,
    read_experts,
    shared_weights,
    with_moe,
)
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, QkNormSpec

_GATE = {"layers.{layer}.mlp.shared_gate": "model.layers.{layer}.mlp.shared_expert_gate"}


# What transformers takes for fields that config.json leaves out.
_QWEN2 = {
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 1408,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
}
_QWEN3 = {
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}


def qwen2_moe(config: ConfigReader, architecture: str) -> ArchSpec:
    config.has_only("use_sliding_window", False)
    config.has_only("layer_types", ["full_attention"] * config.positive("num_hidden_layers"))
    config = config.with_defaults(**_QWEN2)
    spec = read_spec(config, architecture, norm=rms_norm(config), windows=True)
    spec = spec.with_attention(qkv_bias=config.get("qkv_bias", bool, True), output_bias=False)
    shared = MlpSpec(config.positive("shared_expert_intermediate_size"))
    return _with_experts(config, spec, shared)


def qwen3_moe(config: ConfigReader, architecture: str) -> ArchSpec:
    norm = rms_norm(config)
    config = config.with_defaults(**_QWEN3)
    spec = read_spec(config, architecture, norm=norm, windows=True).with_attention(
        qk_norm=QkNormSpec(norm)
    )
    if config.get("use_sliding_window", bool, False):
        spec = with_window(config, spec)
    return _with_experts(config, spec, None)


def _with_experts(config: ConfigReader, spec: ArchSpec, shared: MlpSpec | None) -> ArchSpec:
    count, top_k = read_experts(config, "num_local_experts", "num_experts")
    renormalise = config.get("norm_topk_prob", bool, False)
    experts = ExpertsSpec(config.positive("moe_intermediate_size"))
    router = RouterSpec(count, top_k, renormalise=renormalise)
    dense = config.integers("mlp_only_layers") or ()
    step = config.positive("decoder_sparse_step", 1)
    moe = MoeSpec(router, experts, shared, shared_gate=shared is not None)
    return with_moe(spec, moe, lambda i: i not in dense and (i + 1) % step == 0)


_WEIGHTS = {**llama.WEIGHTS, **expert_weights("mlp")}

QWEN2_MOE = Family(
    "Qwen2-MoE",
    ("Qwen2MoeForCausalLM",),
    qwen2_moe,
    {**_WEIGHTS, **shared_weights("mlp.shared_expert"), **_GATE},
)
QWEN3_MOE = Family("Qwen3-MoE", ("Qwen3MoeForCausalLM",), qwen3_moe, _WEIGHTS)
