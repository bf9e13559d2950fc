# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V2 and V3: latent attention, many small experts, some of them shared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from slipstream.attention.interface import ScoreSpec
from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.norm import NormSpec
from slipstream.layers.rope_scaling import YarnScaling
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm
from slipstream.models.families.moe import expert_weights, read_experts, shared_weights, with_moe
from slipstream.models.families.rope import rope_fields
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, MlaSpec
from slipstream.models.weights import WeightRule, WeightTable

_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."


# What transformers takes for fields that config.json leaves out.
_BOTH = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_V2 = {**_BOTH, "moe_intermediate_size": 1407, "n_routed_experts": 64, "n_shared_experts": 2}
_V3 = {
    **_BOTH,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "topk_group": 4,
}


def deepseek_v2(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(**_V2)
    config.only("scoring_func", "softmax")
    config.only("norm_topk_prob", False)
    config.only("topk_method", "greedy", "group_limited_greedy")
    grouped = config.get("topk_method", str, "greedy") == "group_limited_greedy"
    groups = _read_groups(config) if grouped else {}
    return _with_experts(config, _read(config, architecture), 1.0, groups)


def deepseek_v3(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(**_V3)
    config.only("scoring_func", "sigmoid")
    config.only("topk_method", "noaux_tc")
    spec = _read(config, architecture)
    router = {
        "score": "sigmoid",
        "renormalise": config.get("norm_topk_prob", bool, True),
        "group_rank": "top2",
        "correction": True,
    }
    return _with_experts(config, spec, 2.5, {**_read_groups(config), **router})


def _read(config: ConfigReader, architecture: str) -> ArchSpec:
    mla = MlaSpec(
        q_lora_rank=config.positive("q_lora_rank") if config.has("q_lora_rank") else None,
        kv_lora_rank=config.positive("kv_lora_rank"),
        rope_dim=config.positive("qk_rope_head_dim"),
        no_rope_dim=config.positive("qk_nope_head_dim"),
        value_dim=config.positive("v_head_dim"),
        norm=NormSpec(1e-6),
    )
    config.only("head_dim", mla.rope_dim)
    config.only("num_key_value_heads", config.positive("num_attention_heads"))
    config.only("moe_layer_freq", 1)
    config = config.with_values(head_dim=mla.rope_dim)
    spec = read_spec(config, architecture, norm=rms_norm(config))
    rope = spec.layers[0].attention.rope
    assert rope is not None
    if config.get("rope_interleave", bool, True):
        rope = replace(rope, style="interleaved")
    scale = (mla.no_rope_dim + mla.rope_dim) ** -0.5
    weight = rope_fields(config).get("mscale_all_dim", float, 0.0)
    if isinstance(rope.scaling, YarnScaling) and rope.scaling.factor > 1.0:
        scale *= (0.1 * weight * math.log(rope.scaling.factor) + 1.0) ** 2
    spec = replace(spec, num_kv_heads=1, head_dim=mla.cached_dim)
    return spec.with_attention(mla=mla, rope=rope, scores=ScoreSpec(scale))


def _read_groups(config: ConfigReader) -> dict[str, Any]:
    groups, kept = config.positive("n_group"), config.positive("topk_group")
    count, top_k = read_experts(config, "n_routed_experts")
    if count % groups or count < 2 * groups:
        raise config.invalid("n_group", f"a divisor of {count} experts, two or more a group")
    if kept > groups or kept * (count // groups) < top_k:
        raise config.invalid("topk_group", f"at most {groups} groups with at least {top_k} experts")
    return {"num_groups": groups, "kept_groups": kept}


def _with_experts(
    config: ConfigReader, spec: ArchSpec, default_scale: float, router: dict[str, Any]
) -> ArchSpec:
    count, top_k = read_experts(config, "n_routed_experts")
    scale = config.positive_float("routed_scaling_factor", default_scale)
    width = config.positive("moe_intermediate_size")
    shared = MlpSpec(width * config.positive("n_shared_experts"))
    dense = config.get("first_k_dense_replace", int, 0)
    moe = MoeSpec(
        RouterSpec(count, top_k, scale=scale, exact=True, **router), ExpertsSpec(width), shared
    )
    return with_moe(spec, moe, lambda index: index >= dense)


WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    **expert_weights("mlp"),
    **shared_weights("mlp.shared_experts"),
    _TO + "mlp.router.correction": _FROM + "mlp.gate.e_score_correction_bias",
    _TO + "attention.q_a": _FROM + "self_attn.q_a_proj",
    _TO + "attention.q_a_norm": _FROM + "self_attn.q_a_layernorm",
    _TO + "attention.q_b": WeightRule(
        (_FROM + "self_attn.q_b_proj",), otherwise=WeightRule((_FROM + "self_attn.q_proj",))
    ),
    _TO + "attention.kv_a": _FROM + "self_attn.kv_a_proj_with_mqa",
    _TO + "attention.kv_a_norm": _FROM + "self_attn.kv_a_layernorm",
    _TO + "attention.kv_b": WeightRule(
        (_FROM + "self_attn.kv_b_proj.weight",),
        lambda tensors, spec: tensors[0].unflatten(0, (spec.num_heads, -1)),
    ),
}

# V3 checkpoints end with a layer that predicts a token further, for drafting.
_NEXT = ("model.layers.{num_layers}.",)

DEEPSEEK_V2 = Family("DeepSeek V2", ("DeepseekV2ForCausalLM",), deepseek_v2, WEIGHTS)
DEEPSEEK_V3 = Family(
    "DeepSeek V3", ("DeepseekV3ForCausalLM",), deepseek_v3, WEIGHTS, ignored_parts=_NEXT
)
