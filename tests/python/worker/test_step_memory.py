# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The estimate of a step's memory against what a decoder allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from slipstream.attention.interface import AttentionPlan
from slipstream.models.decoder import Decoder
from slipstream.models.registry import describe
from slipstream.models.spec import ArchSpec
from slipstream.models.step_memory import step_bytes

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 4000,
}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Gemma2ForCausalLM": {
        "head_dim": 64, "sliding_window": 512, "query_pre_attn_scalar": 64, "num_key_value_heads": 8
    },
    "GPT2LMHeadModel": {"n_embd": 256, "n_head": 8, "n_layer": 2, "n_positions": 2048},
}  # fmt: skip
# Tokens of a step, sequences, and how many words the model has: wide layers, or wide logits.
STEPS = [(1024, 16, 4000), (128, 128, 32000)]


def spec_of(architecture: str, **fields: Any) -> ArchSpec:
    spec, _ = describe({**SHAPE, "architectures": [architecture], **fields})
    return spec


class NoAttention:
    """What attention gives out, and nothing else."""

    def __init__(self, values: int) -> None:
        self._values = values

    def run(self, layer: int, qkv: torch.Tensor, *others: Any) -> torch.Tensor:
        return qkv.new_zeros((qkv.shape[0], self._values))


@torch.inference_mode()
def allocated(spec: ArchSpec, dtype: torch.dtype, tokens: int, sequences: int) -> int:
    """The most that is allocated at once, in a step on the CPU."""
    model = Decoder(spec, dtype)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    ids = torch.arange(tokens, dtype=torch.int32)
    values = spec.num_heads * (spec.latent_dim or spec.head_dim)
    attention: AttentionPlan = NoAttention(values)  # type: ignore[assignment]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model.logits(model(ids, ids, attention)[:sequences])
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_is_near(model: str, step: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, sequences, words = step
    spec = spec_of(model, vocab_size=words, **MODELS[model])
    found = allocated(spec, dtype, tokens, sequences)
    assert step_bytes(spec, dtype.itemsize, tokens, sequences) == pytest.approx(found, rel=0.12)


def test_each_expert_that_a_token_chose_counts() -> None:
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    spec = spec_of("MixtralForCausalLM", **experts)
    assert step_bytes(spec, 2, 1000, 1) == 1000 * (5 * 256 + 2 * (896 + 256)) * 2


def test_a_shared_expert_computes_beside_what_the_others_gave() -> None:
    latent = {
        "first_k_dense_replace": 0,
        "kv_lora_rank": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 50,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
    }
    spec = spec_of("DeepseekV2ForCausalLM", **latent)
    assert step_bytes(spec, 2, 1000, 1) == 1000 * (6 * 256 + 3 * 50 * 16) * 2


def test_latent_attention_is_as_wide_as_its_vectors() -> None:
    latent = {
        "first_k_dense_replace": 2,
        "intermediate_size": 8,
        "kv_lora_rank": 512,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    spec = spec_of("DeepseekV2ForCausalLM", **latent)
    of_a_head = 128 + 64 + 576 + 512
    assert step_bytes(spec, 2, 1000, 1) == 1000 * (3 * 256 + 8 * of_a_head + 2 * 576) * 2
