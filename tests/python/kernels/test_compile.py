# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Kernels compile for GPUs: what the interpreter takes, the compiler may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

_SIZES = {
    "torch_dtype": "bfloat16",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "gemma2": {  # windows, caps of scores and logits, norms in float32
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "sliding_window": 64,
        "query_pre_attn_scalar": 64,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "moe_intermediate_size": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
}
EXPECTED = {
    *("_receive", "_expand", "_rope_tables", "_prepare_qkv", "_decode", "_prefill", "_keep"),
    *("_add_rms_norm", "_gated_activation", "_greedy", "_draw_rows", "_tiles", "_vector"),
    "_gather",
}
STREAMED = {"_stream", "_stream_decode", "_shares", "_stream_prefill"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run there")
@pytest.mark.parametrize(
    "capability", [90, pytest.param(80, marks=pytest.mark.slow)], ids="sm_{}".format
)
def test_every_kernel_of_a_step_compiles(tmp_path: Path, capability: int) -> None:
    folders = []
    for name, config in CONFIGS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**_SIZES, **config}))
        folders.append(str(folder))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_for_gpu.py"), str(capability), *folders],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names = {line.split()[0] for line in done.stdout.splitlines()}
    expected = EXPECTED | (STREAMED if capability == 90 else set())
    assert names >= expected, expected - names
