#!/usr/bin/env python3
# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``deterministic`` costs on a CPU: the same requests with and without it, in turn.

    python benchmarks/deterministic.py [--model NAME] [--dtype bfloat16] [--rounds 3]
        [--threads 0]

Tokens per second of closed batches of greedy requests, and the time to the first token of one long
prompt, through the Executor and its worker process, without reuse. ``random`` is a Llama of 12
layers of 1,024 (201 million parameters) with random weights, ``random-moe`` a Qwen3-MoE of 6 layers
of 1,024 with 4 of 32 experts of 384 (311 million). Medians of the rounds; the ratio is
of what holds with the option to what holds without.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from slipstream.api import LLM, SamplingParams
from slipstream.demo import demo_model_path

RANDOM_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RANDOM_MOE = {
    **RANDOM_LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 6,
    "head_dim": 64,
    "moe_intermediate_size": 384,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
}
RANDOM = {"random": RANDOM_LLAMA, "random-moe": RANDOM_MOE}
BATCHES = {1: 48, 8: 32, 64: 16}  # requests together: tokens of each
PROMPT, LONG_PROMPT = 64, 1024


def measure(llm: LLM, vocab: int) -> dict[str, float]:
    """Tokens per second by batch, and milliseconds to the first token of a long prompt."""
    rng = random.Random(0)

    def prompts(count: int, size: int) -> list[list[int]]:
        return [[rng.randrange(4, vocab) for _ in range(size)] for _ in range(count)]

    found = {}
    for count, tokens in BATCHES.items():
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        llm.generate(prompts(count, PROMPT), params)
        found[f"tokens/s, {count} together"] = count * tokens / (time.perf_counter() - start)
    start = time.perf_counter()
    llm.generate(prompts(1, LONG_PROMPT), SamplingParams(max_tokens=1, ignore_eos=True))
    found[f"ms to the first token of {LONG_PROMPT}"] = (time.perf_counter() - start) * 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["demo", "demo-moe", *RANDOM], default="demo")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the worker; 0: its own choice")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model in RANDOM:
            path, vocab, load_format = Path(folder), 32000, "dummy"
            (path / "config.json").write_text(json.dumps(RANDOM[arguments.model]))
        else:
            path, vocab, load_format = demo_model_path(arguments.model), 2560, "auto"
        loaded = {
            deterministic: LLM(
                path,
                dtype=arguments.dtype,
                device="cpu",
                load_format=load_format,
                kv_cache_tokens=1 << 14,
                enable_prefix_reuse=False,
                num_threads=arguments.threads,
                deterministic=deterministic,
            )
            for deterministic in (False, True)
        }
        rounds: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for turn in range(arguments.rounds + 1):
            for deterministic, llm in loaded.items():
                found = measure(llm, vocab)
                if turn:  # the first warms up
                    rounds[deterministic].append(found)
        for llm in loaded.values():
            llm.close()
    print(f"{arguments.model}, {arguments.dtype}: without, with deterministic, ratio")
    for name in rounds[False][0]:
        without, with_it = (statistics.median(r[name] for r in rounds[d]) for d in (False, True))
        print(f"{name:32} {without:10.1f} {with_it:10.1f} {with_it / without:6.2f}")


if __name__ == "__main__":
    main()
