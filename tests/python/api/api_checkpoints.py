# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tiny random models that tests of the Python API generate with, and prompts for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

VOCAB = 160
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def _save(model: type[PreTrainedModel], config: PretrainedConfig, path: Path) -> Path:
    """With the same weights each time."""
    torch.manual_seed(3)
    model(config).save_pretrained(path)
    return path


def save_llama(path: Path, *, initializer_range: float) -> Path:
    """Three layers in float32."""
    config = LlamaConfig(
        intermediate_size=128,
        num_hidden_layers=3,
        num_key_value_heads=2,
        initializer_range=initializer_range,
        **_SMALL,
    )
    return _save(LlamaForCausalLM, config, path)


def save_mixture(path: Path, *, initializer_range: float) -> Path:
    """Two layers in float32, each of eight experts and a shared one behind a gate."""
    config = Qwen2MoeConfig(
        moe_intermediate_size=40,
        shared_expert_intermediate_size=56,
        num_experts=8,
        num_experts_per_tok=3,
        num_hidden_layers=2,
        num_key_value_heads=2,
        initializer_range=initializer_range,
        **_SMALL,
    )
    return _save(Qwen2MoeForCausalLM, config, path)


def save_latents(path: Path, *, initializer_range: float) -> Path:
    """Two layers in float32 with latent attention, the second of eight experts in four groups."""
    config = DeepseekV3Config(
        intermediate_size=96,
        moe_intermediate_size=40,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        kv_lora_rank=20,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=12,
        v_head_dim=16,
        num_hidden_layers=2,
        num_key_value_heads=4,
        initializer_range=initializer_range,
        **_SMALL,
    )
    return _save(DeepseekV3ForCausalLM, config, path)


def prompts_with_a_prefix_in_common(lengths: Sequence[int]) -> list[list[int]]:
    """Beginnings of one text, of those lengths; all of it with six endings; and the endings."""
    rng = random.Random(0)
    shared = [rng.randrange(VOCAB) for _ in range(70)]
    own = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))] for _ in range(6)]
    return [shared[:n] for n in lengths] + [shared + tail for tail in own] + own
