# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The same plans on a GPU and on the CPU give the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worker_checkpoints import VOCAB
from worker_testing import Driver, load_runner

from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.moe import ExpertLoad, MoeBlock, MoeSpec
from slipstream.layers.router import RouterSpec


def varied_params(slot: int) -> dict:
    return {
        "seed": slot,
        "temperature": 0.9 if slot % 3 else 0.0,
        "top_p": 0.9 if slot % 2 else 1.0,
        "top_k": 50 if slot % 5 == 0 else 0,
        "num_logprobs": 2 if slot % 4 == 0 else -1,
        "repetition_penalty": 1.2 if slot % 7 == 0 else 1.0,
        "bad_words": [[4], [5, 6]] if slot % 6 == 0 else (),
        "bias": [(3, 1.0)] if slot % 8 == 0 else (),
    }


def run_mixed_steps(path, device: str, **settings) -> tuple[list[list[int]], np.ndarray]:
    """24 sequences, chunked at random, then decoding together: tokens and log probabilities."""
    driver = Driver(
        load_runner(
            path,
            device=device,
            tokens_per_block=16,
            kv_cache_tokens=16384,
            max_num_tokens=8192,
            **settings,
        )
    )
    random = np.random.default_rng(0)
    plan = driver.new_plan()
    sequences = []
    for slot in range(24):
        prompt = random.integers(3, VOCAB, int(random.integers(1, 500))).tolist()
        sequences.append(driver.start(plan, slot, prompt, **varied_params(slot)))
    generated: list[list[int]] = [[] for _ in sequences]
    logprobs = []
    for _ in range(30):
        for sequence, tokens in zip(sequences, generated, strict=True):
            left = len(sequence.tokens) - sequence.computed
            count = min(left, int(random.integers(1, 300)))
            driver.add(plan, sequence, count, from_slot=bool(tokens))
        result = driver.runner.step(plan.build())
        plan = driver.new_plan()
        logprobs.append(result.logprob_values)
        sampled = iter(result.tokens.tolist())
        for i in np.flatnonzero(result.num_tokens):
            generated[i].append(next(sampled))
            sequences[i].tokens.append(generated[i][-1])
    return generated, np.concatenate(logprobs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_equals_cpu(checkpoint):
    path = checkpoint("gqa").path
    tokens, logprobs = run_mixed_steps(path, "cpu")
    gpu_tokens, gpu_logprobs = run_mixed_steps(path, "cuda")
    assert gpu_tokens == tokens
    np.testing.assert_allclose(gpu_logprobs, logprobs, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_equals_cpu_with_an_fp8_cache(checkpoint):
    """But for keys in the middle between two e4m3 values, which another order of sums moves."""
    path = checkpoint("gqa").path
    tokens, _ = run_mixed_steps(path, "cpu", kv_cache_dtype="fp8")
    gpu_tokens, _ = run_mixed_steps(path, "cuda", kv_cache_dtype="fp8")
    same = [ours == theirs for ours, theirs in zip(gpu_tokens, tokens, strict=True)]
    assert sum(same) >= len(same) - 2
    exact, _ = run_mixed_steps(path, "cpu")
    assert sum(ours == theirs for ours, theirs in zip(exact, tokens, strict=True)) < len(same) - 2


def test_mixed_steps_repeat(checkpoint):
    """The comparison above is of something that does not vary by itself."""
    path = checkpoint("gqa").path
    tokens, logprobs = run_mixed_steps(path, "cpu")
    again, logprobs_again = run_mixed_steps(path, "cpu")
    assert again == tokens
    assert min(map(len, tokens)) >= 20
    np.testing.assert_array_equal(logprobs, logprobs_again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_experts_are_counted_without_waiting_for_the_gpu():
    block = MoeBlock(64, MoeSpec(RouterSpec(8, 2), ExpertsSpec(32)), torch.bfloat16).cuda()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    load = ExpertLoad({0: block}, torch.device("cuda"))
    with torch.inference_mode():
        block(torch.randn(50, 64, device="cuda", dtype=torch.bfloat16))
        torch.cuda._sleep(1_000_000_000)  # cycles: about half a second of work
        reading = load.begin_reading()
        assert not reading.done()
        torch.cuda.synchronize()
    assert reading.done()
    assert reading.counts.is_pinned()
    assert torch.equal(reading.counts, load.counts())
    assert reading.counts.sum() == 100
