# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Configurations spelled as transformers 4 published them, with all that they say besides."""

from __future__ import annotations

from typing import Any

import pytest

from slipstream.attention.interface import FULL
from slipstream.layers.rope_scaling import Llama3Scaling
from slipstream.models.registry import describe

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "vocab_size": 50257,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
EXAONE = {
    "architectures": ["Exaone4ForCausalLM"],
    "eos_token_id": 361,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27392,
    "max_position_embeddings": 131072,
    "num_attention_heads": 40,
    "num_hidden_layers": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "sliding_window_pattern": "LLLG",
    "torch_dtype": "bfloat16",
    "vocab_size": 102400,
}
PHI4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.5] * 48,
        "short_factor": [1.0] * 48,
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 200064,
}
COMMAND_R7B = {
    "architectures": ["Cohere2ForCausalLM"],
    "attention_bias": False,
    "cache_implementation": "hybrid",
    "eos_token_id": 255001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "layer_norm_eps": 1e-05,
    "layer_switch": 4,
    "logit_scale": 0.25,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 8,
    "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first",
    "pad_token_id": 0,
    "position_embedding_type": "rope_gptj",
    "rope_scaling": None,
    "rope_theta": 50000,
    "rotary_pct": 1.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "torch_dtype": "bfloat16",
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "vocab_size": 256000,
}


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (GPT2, {"head_dim": 64, "max_positions": 1024, "tie_embeddings": True, "dtype": None}),
        (PYTHIA, {"head_dim": 64, "end_ids": (0,), "dtype": "float16", "tie_embeddings": False}),
        (EXAONE, {"max_positions": 131072, "pad_id": -1}),
        (PHI4_MINI, {"max_positions": 4096, "head_dim": 128, "tie_embeddings": True}),
        (COMMAND_R7B, {"logit_scale": 0.25, "tie_embeddings": True, "pad_id": 0}),
    ],
    ids=["gpt2", "pythia", "exaone", "phi4_mini", "command_r7b"],
)
def test_what_a_published_file_says(published: dict[str, Any], expected: dict[str, Any]) -> None:
    spec, _ = describe(published)
    assert {name: getattr(spec, name) for name in expected} == expected


def test_layers_of_published_files() -> None:
    attention = [layer.attention for layer in describe(EXAONE)[0].layers]
    assert [a.scores.mask == FULL for a in attention] == ([False] * 3 + [True]) * 2
    assert attention[0].rope is not None
    assert attention[0].rope.scaling == Llama3Scaling(16.0, 1.0, 4.0, 8192)
    assert attention[3].rope is None
    (phi,) = {layer.attention for layer in describe(PHI4_MINI)[0].layers}
    assert phi.rope is not None
    assert (phi.rope.dim, phi.scores.mask.size) == (96, 262144)
    pythia = describe(PYTHIA)[0].layers[0].attention
    assert pythia.rope is not None
    assert (pythia.rope.dim, pythia.qkv_bias, pythia.output_bias) == (16, True, True)
    mlp = describe(GPT2)[0].layers[0].mlp
    assert (mlp.intermediate_size, mlp.activation) == (3072, "gelu_tanh")
