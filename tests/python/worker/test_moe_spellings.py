# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Configurations of mixtures of experts as transformers 4 published them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from slipstream.attention.interface import FULL, Mask
from slipstream.layers.moe import MoeSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import CheckpointError
from slipstream.models.registry import describe
from slipstream.models.spec import ArchSpec

GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
DEEPSEEK_V3 = {
    **DEEPSEEK_V2_LITE,
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_group": 8,
    "n_routed_experts": 256,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
}
SCOUT = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "torch_dtype": "bfloat16",
    "text_config": {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
}


def read(config: dict[str, Any]) -> tuple[ArchSpec, MoeSpec]:
    spec, _ = describe(config)
    moe = spec.layers[-1].mlp
    assert isinstance(moe, MoeSpec)
    return spec, moe


def test_gpt_oss() -> None:
    spec, moe = read(GPT_OSS)
    assert moe.router == RouterSpec(32, 4, score_chosen=True, bias=True)
    masks = [layer.attention.scores.mask for layer in spec.layers]
    assert masks == [Mask("sliding", 128), FULL] * 12
    scaling = spec.layers[0].attention.rope.scaling
    assert not scaling.truncate
    assert scaling.attention_factor == pytest.approx(0.1 * math.log(32) + 1)


def test_qwen3_moe() -> None:
    spec, moe = read(QWEN3_MOE)
    assert moe.router == RouterSpec(128, 8, renormalise=True)
    assert (moe.experts.intermediate_size, moe.shared) == (768, None)
    assert all(layer.mlp == moe for layer in spec.layers)
    assert spec.layers[0].attention.scores.mask == FULL


def test_deepseek() -> None:
    spec, moe = read(DEEPSEEK_V2_LITE)
    assert moe.router == RouterSpec(64, 6, exact=True)
    assert moe.shared.intermediate_size == 2 * 1408
    attention = spec.layers[0].attention
    growth = 0.1 * 0.707 * math.log(40) + 1
    assert attention.scores.scale == pytest.approx(192**-0.5 * growth**2)
    assert attention.rope.scaling.attention_factor == pytest.approx(1.0)
    assert attention.rope.style == "interleaved"
    assert (spec.num_kv_heads, spec.head_dim, spec.latent_dim) == (1, 576, 512)
    assert not isinstance(spec.layers[0].mlp, MoeSpec)
    _, moe = read(DEEPSEEK_V3)
    assert moe.router == RouterSpec(
        256,
        8,
        "sigmoid",
        renormalise=True,
        scale=2.5,
        num_groups=8,
        kept_groups=4,
        group_rank="top2",
        correction=True,
        exact=True,
    )
    with pytest.raises(CheckpointError, match="quantization_config is {'quant_method': 'fp8'}"):
        describe({**DEEPSEEK_V3, "quantization_config": {"quant_method": "fp8"}})


def test_llama4_scout() -> None:
    spec, moe = read(SCOUT)
    assert spec.dtype == "bfloat16"
    assert moe.router == RouterSpec(16, 1, "sigmoid", score_chosen=True)
    assert moe.experts.weigh_input
    kinds = [(a.rope is not None, a.scores.mask) for a in (x.attention for x in spec.layers)]
    assert kinds == ([(True, Mask("chunked", 8192))] * 3 + [(False, FULL)]) * 12
    rotated, bare = spec.layers[0].attention, spec.layers[3].attention
    assert rotated.qk_norm.after_rope
    assert not rotated.qk_norm.norm.weight
    assert rotated.temperature is None
    assert (bare.temperature.floor, bare.temperature.scale, bare.qk_norm) == (8192, 0.1, None)
