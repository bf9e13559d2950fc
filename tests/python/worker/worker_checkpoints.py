# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Random tiny Llama checkpoints, made by transformers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 211


@dataclass(frozen=True)
class Reference:
    """A checkpoint and transformers' own model of it."""

    path: Path
    model: LlamaForCausalLM

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """transformers' logits ``[tokens, vocab]``, in the checkpoint's dtype."""
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0].float()

    def exact_logits(self, tokens: list[int]) -> torch.Tensor:
        """The same, computed in float32."""
        with torch.inference_mode():
            return copy.deepcopy(self.model).float()(torch.tensor([tokens])).logits[0]


BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "tie_word_embeddings": False,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha_tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    },
    "biases": {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
    "head_dim": {"head_dim": 32, "num_key_value_heads": 1},
    "sharded": {},
    "bf16": {"torch_dtype": "bfloat16"},
    "bf16_biases": {"torch_dtype": "bfloat16", "attention_bias": True},
}


def make_model(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(sum(map(ord, str(sorted(overrides)))))
    settings = {**BASE, **overrides}
    dtype = getattr(torch, settings.pop("torch_dtype", "float32"))
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts biases at 0 and norms at 1, which would hide their mistakes.
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype)
