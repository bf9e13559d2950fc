# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of every family, and the table of families that they prove."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from moe_cases import MOE_CASES, MOE_EXAMPLES
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 101
WINDOW = 16  # of the cases that have one: shorter than any prompt that matters

# Large enough to be felt, and no two names alike.
_EPSILONS = {
    "rms_norm_eps": 0.02,
    "layer_norm_eps": 0.03,
    "norm_epsilon": 0.04,
    "layer_norm_epsilon": 0.05,
}
SIZES: dict[str, Any] = {
    **_EPSILONS,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2_SIZES: dict[str, Any] = {
    **_EPSILONS,
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}


@dataclass(frozen=True)
class Case:
    """One checkpoint. ``shows`` says what it has that others of its family have not."""

    family: str
    model_type: str
    shows: str
    fields: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    @property
    def name(self) -> str:
        return f"{self.family}: {self.shows}"

    def make_model(self) -> PreTrainedModel:
        """transformers' model in float32 with eager attention, every parameter random."""
        config = AutoConfig.for_model(self.model_type, **{**self.sizes, **self.fields})
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        as_configured(model)
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        with torch.no_grad():
            for name, parameter in _saved(model).items():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1 and "norm" not in name:
                    parameter.copy_(noise * 0.15)
                else:
                    # Norms start at 1 (or 0) and biases at 0, which would hide their mistakes.
                    parameter.add_(noise * 0.3)
        return model


def as_configured(model: PreTrainedModel) -> PreTrainedModel:
    """The model; what older releases of transformers have as constants is taken from its config."""
    for name in ("limit", "alpha"):
        if (value := getattr(model.config, f"swiglu_{name}", None)) is not None:
            for module in model.modules():
                if hasattr(module, name):
                    setattr(module, name, value)
    return model


def _saved(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters, each once, and buffers that checkpoints hold."""
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def _yarn(**fields: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        **fields,
    }


_LOCAL_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
_LLLG = ["sliding_attention"] * 3 + ["full_attention"]

CASES: tuple[Case, ...] = (
    Case("Llama 1 to 3.3", "llama", "rope as trained, tied", {"tie_word_embeddings": True}),
    Case(
        "Llama 1 to 3.3",
        "llama",
        "llama3 rope, biases",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    Case(
        "Llama 1 to 3.3",
        "llama",
        "linear rope",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    Case("Mistral", "mistral", "window on all layers", {"sliding_window": WINDOW}),
    Case("Mistral", "mistral", "no window", {"sliding_window": None, "head_dim": 24}),
    Case("Qwen 2, 2.5", "qwen2", "full attention, tied", {"tie_word_embeddings": True}),
    Case(
        "Qwen 2, 2.5",
        "qwen2",
        "window on upper layers, yarn",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "rope_parameters": _yarn(),
        },
    ),
    Case("Qwen 3", "qwen3", "QK norm", {"head_dim": 24}),
    Case(
        "Qwen 3",
        "qwen3",
        "yarn not truncated, biases",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": _yarn(truncate=False, beta_fast=8.0, attention_factor=1.25),
        },
    ),
    Case(
        "Gemma 2",
        "gemma2",
        "window on every other layer, soft caps",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Case(
        "Gemma 2",
        "gemma2",
        "no soft caps",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    Case(
        "Gemma 3 (text)",
        "gemma3_text",
        "local and global rope, window on 3 of 4 layers",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": _LLLG,
            "rope_parameters": _LOCAL_GLOBAL,
            "final_logit_softcapping": 3.0,
        },
    ),
    Case("Phi-3, Phi-4", "phi3", "window on all layers", {"sliding_window": WINDOW}),
    Case(
        "Phi-3, Phi-4",
        "phi3",
        "longrope up to its original length, partial rope",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            },
        },
    ),
    Case(
        "EXAONE 4.0",
        "exaone4",
        "window on 3 of 4 layers, NoPE elsewhere",
        {"sliding_window": WINDOW, "sliding_window_pattern": 4, "layer_types": _LLLG},
    ),
    Case(
        "EXAONE 4.0",
        "exaone4",
        "full attention",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    Case("OLMo 2", "olmo2", "norms after, QK norm over all heads"),
    Case(
        "Granite 3",
        "granite",
        "multipliers, biases",
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.4,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Case("GLM-4-9B", "glm", "half of a head rotated in pairs", {"head_dim": 16}),
    Case("GLM-4", "glm4", "sandwich norms, half of a head rotated in pairs", {"head_dim": 24}),
    Case("Cohere", "cohere", "parallel block, logit scale", {"logit_scale": 0.25}),
    Case(
        "Cohere", "cohere", "QK norm by head, biases", {"use_qk_norm": True, "attention_bias": True}
    ),
    Case(
        "Cohere 2",
        "cohere2",
        "window on 3 of 4 layers, NoPE elsewhere",
        {"sliding_window": WINDOW, "layer_types": _LLLG},
    ),
    Case("StarCoder 2", "starcoder2", "window on all layers", {"sliding_window": WINDOW}),
    Case("StarCoder 2", "starcoder2", "no window, no biases", {"use_bias": False}),
    Case("SmolLM 3", "smollm3", "NoPE on every fourth layer"),
    Case(
        "SmolLM 3",
        "smollm3",
        "window on NoPE layers",
        {
            "no_rope_layers": [1, 0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    Case("GPT-2", "gpt2", "learned positions", sizes=_GPT2_SIZES),
    Case(
        "GPT-2",
        "gpt2",
        "scores scaled by depth",
        {"scale_attn_by_inverse_layer_idx": True, "n_inner": 96},
        sizes=_GPT2_SIZES,
    ),
    Case(
        "GPT-NeoX",
        "gpt_neox",
        "parallel block, a quarter of a head rotated",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.25,
            }
        },
        sizes=NEOX_SIZES,
    ),
    Case(
        "GPT-NeoX",
        "gpt_neox",
        "sequential block",
        {"use_parallel_residual": False},
        sizes=NEOX_SIZES,
    ),
    *(Case(*case) for case in MOE_CASES),
)

EXAMPLES: dict[str, str] = {
    "Llama 1 to 3.3": "Llama 2 7B, Llama 3.1 8B, Llama 3.3 70B, TinyLlama",
    "Mistral": "Mistral 7B, Mistral Nemo, Mistral Small 24B (2501)",
    "Qwen 2, 2.5": "Qwen2 7B, Qwen2.5 0.5B–72B",
    "Qwen 3": "Qwen3 0.6B–32B",
    "Gemma 2": "Gemma 2 2B, 9B, 27B",
    "Gemma 3 (text)": "Gemma 3 270M, 1B",
    "Phi-3, Phi-4": "Phi-3 mini, Phi-3.5 mini, Phi-4, Phi-4 mini",
    "EXAONE 4.0": "EXAONE 4.0 1.2B, 32B",
    "OLMo 2": "OLMo 2 1B–32B",
    "Granite 3": "Granite 3.x 2B, 8B",
    "GLM-4-9B": "glm-4-9b-chat-hf",
    "GLM-4": "GLM-4-9B-0414, GLM-4-32B-0414",
    "Cohere": "Command R, Command R+",
    "Cohere 2": "Command R7B, Command A",
    "StarCoder 2": "StarCoder2 3B, 7B, 15B",
    "SmolLM 3": "SmolLM3 3B",
    "GPT-2": "GPT-2 124M–1.5B",
    "GPT-NeoX": "GPT-NeoX 20B, Pythia",
    **MOE_EXAMPLES,
}
