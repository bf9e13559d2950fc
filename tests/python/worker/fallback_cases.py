# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints for transformers' own forward: architectures without a family, and some
with one."""

from __future__ import annotations

from typing import Any

from family_cases import CASES, NEOX_SIZES, VOCAB, WINDOW, Case
from transformers.models.gptj import modeling_gptj

_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    **NEOX_SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GPTJ_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 512,
    "rotary_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Older releases, all there are for Python 3.10, choose its attention themselves: it is refused.
GPTJ_IS_SERVED = hasattr(modeling_gptj, "ALL_ATTENTION_FUNCTIONS")
_GPTJ = Case("GPT-J", "gptj", "pairs rotated, biased logits", sizes=GPTJ_SIZES)
_SLSL = ["sliding_attention", "full_attention"] * 2

# What layers ask of attention differs as much as architectures in transformers allow.
FOREIGN: tuple[Case, ...] = (
    Case("Nemotron", "nemotron", "half of a head rotated, LayerNorm around 1", {"head_dim": 16}),
    Case("StableLM", "stablelm", "parallel block", {"use_parallel_residual": True}),
    Case("Phi-2", "phi", "parallel block, biased logits"),
    Case(
        "OPT",
        "opt",
        "learned positions with an offset, projected embeddings",
        {"ffn_dim": 80, "word_embed_proj_dim": 48, "do_layer_norm_before": True},
    ),
    Case("DiffLlama", "diffllama", "two attentions a layer"),
    Case("MiniCPM 3", "minicpm3", "values smaller than keys, scaled logits", sizes=_LATENT),
    Case(
        "Qwen 2 MoE",
        "qwen2_moe",
        "experts",
        {**_MOE, "num_experts": 8, "shared_expert_intermediate_size": 48},
    ),
    Case(
        "GPT-OSS",
        "gpt_oss",
        "sinks, a window on every other layer, experts",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": _SLSL,
        },
    ),
    Case(
        "Llama 4",
        "llama4_text",
        "chunks, no rotation on every fourth layer, experts",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 80,
            "num_local_experts": 4,
            "attention_chunk_size": WINDOW,
            "attn_temperature_tuning": False,
        },
    ),
    Case(
        "MiMo V2",
        "mimo_v2_flash",
        "sinks, a window, more KV heads in layers that have it",
        {
            **_MOE,
            "head_dim": 16,
            "v_head_dim": 12,
            "sliding_window": WINDOW,
            "n_routed_experts": 8,
            "layer_types": _SLSL,
        },
    ),
    *((_GPTJ,) if GPTJ_IS_SERVED else ()),
)

# With a family as well: a window with soft caps, scaled logits, and neither.
BOTH: tuple[Case, ...] = tuple(
    next(case for case in CASES if case.family == family)
    for family in ("Llama 1 to 3.3", "Gemma 2", "Cohere")
)
