# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Generation on a GPU through the Executor and its worker, with random weights.

    python benchmarks/gpu.py llama-3.1-8b [--batch 1,8,32] [--mixed] [--kv-cache-dtype fp8]
        [--attention-backend flashinfer] [--json FILE]

Closed batches: prompts of 1,024 random tokens, greedy, end tokens ignored, no reuse of prefixes;
time per output token is (time with 129 new tokens - time with 1) / 128, and prefill is measured by
the latter. Mixed: 512 requests at once, prompts and outputs uniform in [100, 1024], seed 1. Every
shape runs once to warm up; numbers are medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from slipstream import LLM, SamplingParams

PROMPT, NEW = 1024, 129

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN3 = {
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
    "eos_token_id": 151645,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **_QWEN3,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
    "mixtral-8x7b": {
        **_LLAMA,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
}


def timed(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> float:
    """Seconds until all are complete. Checks that every one has its tokens."""
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    elapsed = time.perf_counter() - start
    for output, asked in zip(outputs, params, strict=True):
        assert len(output.completions[0].token_ids) == asked.max_tokens
    return elapsed


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, ignore_eos=True)


def random_prompts(vocab: int, lengths: list[int], seed: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(10, vocab - 10, length).tolist() for length in lengths]


def closed(llm: LLM, vocab: int, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds a token, and prompt tokens a second."""
    whole, first = [], []
    for turn in range(repeats + 1):
        prompts = random_prompts(vocab, [PROMPT] * batch, 1000 * batch + turn)
        first.append(timed(llm, prompts, [greedy(1)] * batch))
        whole.append(timed(llm, prompts, [greedy(NEW)] * batch))
    one, all_ = statistics.median(first[1:]), statistics.median(whole[1:])
    return {
        "batch": batch,
        "ms_per_token": (all_ - one) / (NEW - 1) * 1e3,
        "prefill_tokens_per_s": batch * PROMPT / one,
        "first_s": one,
    }


def mixed(llm: LLM, vocab: int, repeats: int) -> dict[str, float]:
    uniform = random.Random(1)  # the peer's own: 289,400 tokens in, 291,717 out
    lengths = [uniform.randint(100, 1024) for _ in range(512)]
    outputs = [uniform.randint(100, 1024) for _ in range(512)]
    prompts = random_prompts(vocab, lengths, 2)
    times = [timed(llm, prompts, [greedy(n) for n in outputs]) for _ in range(repeats)]
    total = sum(outputs)
    return {"mixed_output_tokens_per_s": total / statistics.median(times), "output_tokens": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", default="1,8,32,64,128,256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--max-num-seqs", type=int, default=512)
    parser.add_argument("--max-num-tokens", type=int, default=8192)
    parser.add_argument("--tokens-per-block", type=int, default=64)
    parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], default="auto")
    parser.add_argument(
        "--attention-backend", choices=["auto", "triton", "flashinfer", "sdpa"], default="auto"
    )
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    values = MODELS[arguments.model]
    results: dict[str, Any] = {
        "model": arguments.model,
        "kv_cache_dtype": arguments.kv_cache_dtype,
        "attention_backend": arguments.attention_backend,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        start = time.perf_counter()
        llm = LLM(
            folder,
            load_format="dummy",
            max_num_seqs=arguments.max_num_seqs,
            max_num_tokens=arguments.max_num_tokens,
            max_seq_len=4096,
            tokens_per_block=arguments.tokens_per_block,
            kv_cache_dtype=arguments.kv_cache_dtype,
            enable_prefix_reuse=False,
            cuda_graphs=not arguments.no_graphs,
            attention_backend=arguments.attention_backend,
        )
        results["start_s"] = time.perf_counter() - start
        print(f"{arguments.model}: ready after {results['start_s']:.1f} s", flush=True)
        results["closed"] = []
        for batch in map(int, filter(None, arguments.batch.split(","))):
            row = closed(llm, values["vocab_size"], batch, arguments.repeats)
            results["closed"].append(row)
            print(
                f"batch {batch:4d}: {row['ms_per_token']:7.3f} ms/token, prefill "
                f"{row['prefill_tokens_per_s']:9,.0f} tokens/s, first token {row['first_s']:.4f} s",
                flush=True,
            )
        if arguments.mixed:
            results |= mixed(llm, values["vocab_size"], max(arguments.repeats - 1, 1))
            print(f"mixed: {results['mixed_output_tokens_per_s']:,.0f} output tokens/s", flush=True)
        llm.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
