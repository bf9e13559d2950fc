# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The cases of family_cases.py with mixtures of experts: what a Case is made of."""

from __future__ import annotations

from typing import Any

WINDOW = 16
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
_LLAMA4: dict[str, Any] = {
    "head_dim": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 80,
    "num_local_experts": 6,
    "attention_chunk_size": WINDOW,
    "floor_scale": 8,
    "attn_scale": 0.3,
}
_GPT_OSS: dict[str, Any] = {
    "head_dim": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": WINDOW,
    "swiglu_limit": 1.0,
}

# Family, transformers' model type, what the case shows, fields of the configuration.
MOE_CASES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "Mixtral",
        "mixtral",
        "two of eight experts",
        {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    (
        "Mixtral",
        "mixtral",
        "window on all layers",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    (
        "Qwen2-MoE",
        "qwen2_moe",
        "shared expert behind a gate, a dense layer",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [0],
        },
    ),
    (
        "Qwen3-MoE",
        "qwen3_moe",
        "weights that sum to 1, every other layer dense",
        {
            "head_dim": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    (
        "Qwen3-MoE",
        "qwen3_moe",
        "window on all layers, weights as they are",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    (
        "Llama 4 (text)",
        "llama4_text",
        "chunked attention with rope and QK norm, NoPE with temperature on every fourth layer",
        {**_LLAMA4, "num_experts_per_tok": 1},
    ),
    (
        "Llama 4 (text)",
        "llama4_text",
        "dense and sparse layers in turn, two experts, llama3 rope, no QK norm, no temperature",
        {
            **_LLAMA4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0, 1, 0],
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    (
        "GPT-OSS",
        "gpt_oss",
        "sinks, window on every other layer, yarn not truncated, clamped experts with biases",
        {**_GPT_OSS, "rope_parameters": {**_YARN, "truncate": False}},
    ),
    (
        "GPT-OSS",
        "gpt_oss",
        "one expert, window where layer_types says",
        {
            **_GPT_OSS,
            "num_experts_per_tok": 1,
            "swiglu_limit": 2.0,
            "swiglu_alpha": 1.2,
            "attention_bias": False,
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    (
        "DeepSeek V2",
        "deepseek_v2",
        "latent attention, best two of four groups, yarn with mscale",
        {
            **_DEEPSEEK,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
        },
    ),
    (
        "DeepSeek V2",
        "deepseek_v2",
        "queries of one matrix, no groups",
        {**_DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    (
        "DeepSeek V3",
        "deepseek_v3",
        "corrected sigmoid routing within groups, yarn with mscale, biases",
        {
            **_DEEPSEEK,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    (
        "DeepSeek V3",
        "deepseek_v3",
        "queries of one matrix, one group, rope in halves, weights as they are",
        {
            **_DEEPSEEK,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "rope_interleave": False,
            "norm_topk_prob": False,
        },
    ),
)

MOE_EXAMPLES: dict[str, str] = {
    "Mixtral": "Mixtral 8x7B, 8x22B",
    "Qwen2-MoE": "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    "Qwen3-MoE": "Qwen3-30B-A3B, Qwen3-235B-A22B",
    "Llama 4 (text)": "Llama 4 Scout, Maverick",
    "GPT-OSS": "gpt-oss-20b, gpt-oss-120b",
    "DeepSeek V2": "DeepSeek-V2, V2-Lite",
    "DeepSeek V3": "DeepSeek-V3 and R1 in bfloat16",
}
