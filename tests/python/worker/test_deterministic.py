# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""With ``deterministic`` a token's logits are the same to the bit in every family that has it, and
what it is not served with is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, Case
from family_serving import PROMPT, Served, context_logits, random_tokens
from moe_cases import MOE_CASES
from worker_testing import Driver, config, load_runner, logits_of

from slipstream.models.rows import row_obstacle
from slipstream.worker.config import ConfigError
from slipstream.worker.engine import ModelRunner
from slipstream.worker.frames import SeqFlag

MIXTURES = {Case(*values).name for values in MOE_CASES}


def cases_and_dtypes() -> list[object]:
    """float32 is slow but for experts, whose arithmetic is a path of its own."""
    return [
        pytest.param(
            case,
            dtype,
            id=f"{case.name}-{str(dtype).removeprefix('torch.')}",
            marks=() if dtype == torch.bfloat16 or case.name in MIXTURES else pytest.mark.slow,
        )
        for case in CASES
        for dtype in (torch.float32, torch.bfloat16)
    ]


def logits_in_company(driver: Driver, prompt: list[int], chunk: int) -> np.ndarray:
    """``[tokens, vocab]`` of a prompt that is computed beside six others, in a random order."""
    plan = driver.new_plan()
    others = [random_tokens(count, seed=count) for count in (1, 2, 17, 40, 55, 70)]
    sequences = [driver.start(plan, slot, tokens) for slot, tokens in enumerate([prompt, *others])]
    rows: list[np.ndarray] = []
    while sequences[0].computed < len(prompt):
        chosen = [s for s in sequences if s.computed < len(s.tokens)]
        driver.random.shuffle(chosen)
        for sequence in chosen:
            left = len(sequence.tokens) - sequence.computed
            count = chunk if sequence is sequences[0] else int(driver.random.integers(1, 20))
            driver.add(plan, sequence, min(count, left), flags=SeqFlag.CONTEXT_LOGITS)
        parts = logits_of(driver.runner.step(plan.build()), driver.vocab)
        rows += list(parts[chosen.index(sequences[0])])
        plan = driver.new_plan()
    for sequence in sequences:
        driver.release(sequence)
        plan.retire(sequence.slot)
    driver.runner.step(plan.build())
    return np.stack(rows)


@pytest.mark.parametrize(("case", "dtype"), cases_and_dtypes())
def test_logits_are_the_same_in_any_company(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    served = Served.of(case, tmp_path, dtype, deterministic=True)
    prompt = random_tokens(PROMPT, seed=1)
    alone = context_logits(served.driver(), prompt, PROMPT)
    assert np.isfinite(alone).all()
    if dtype == torch.float32:
        served.assert_close(alone, prompt)
    for chunk in (1, 11):
        assert np.array_equal(context_logits(served.driver(), prompt, chunk), alone)
    assert np.array_equal(logits_in_company(served.driver(seed=1), prompt, 19), alone)


def test_without_the_option_they_are_not(tmp_path: Path) -> None:
    """So the test above can fail."""
    served = Served.of(CASES[0], tmp_path, torch.bfloat16)
    prompt = random_tokens(PROMPT, seed=1)
    alone = context_logits(served.driver(), prompt, PROMPT)
    assert not np.array_equal(context_logits(served.driver(), prompt, 1), alone)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served.of(CASES[0], tmp_path_factory.mktemp("llama"), deterministic=True)


def generated(
    runner: ModelRunner, params: list[dict[str, float]]
) -> list[list[tuple[int, np.ndarray]]]:
    """What sequences with these parameters draw together: tokens and their log probabilities."""
    driver = Driver(runner)
    plan = driver.new_plan()
    sequences = [
        driver.start(plan, slot, random_tokens(20, seed=int(own["seed"])), **own)
        for slot, own in enumerate(params)
    ]
    drawn: list[list[tuple[int, np.ndarray]]] = [[] for _ in params]
    for _ in range(12):
        for sequence in sequences:
            driver.add(plan, sequence, len(sequence.tokens) - sequence.computed)
        result = runner.step(plan.build())
        ends = np.cumsum(result.logprob_width)
        for i, (sequence, token) in enumerate(zip(sequences, result.tokens.tolist(), strict=True)):
            values = result.logprob_values[ends[i] - result.logprob_width[i] : ends[i]]
            assert values.size == params[i]["num_logprobs"] + 1
            drawn[i].append((token, values))
            sequence.tokens.append(token)
        plan = driver.new_plan()
    for sequence in sequences:
        driver.release(sequence)
        plan.retire(sequence.slot)
    runner.step(plan.build())
    return drawn


def test_draws_are_the_same_in_any_company(llama: Served) -> None:
    """Greedy and random, with filters and penalties, with and without log probabilities."""
    params = [
        {"seed": 1, "num_logprobs": -1},
        {"seed": 2, "num_logprobs": 3},
        {"seed": 3, "temperature": 1.3, "top_p": 0.9, "num_logprobs": -1},
        {"seed": 4, "temperature": 0.9, "top_k": 20, "num_logprobs": 0},
        {"seed": 5, "temperature": 2.0, "min_p": 0.01, "num_logprobs": 5},
        {"seed": 6, "num_logprobs": -1},
        {"seed": 7, "temperature": 1.0, "repetition_penalty": 1.3, "num_logprobs": 1},
    ]
    together = generated(llama.runner, params)
    for own, drawn in zip(params, together, strict=True):
        (alone,) = generated(llama.runner, [own])
        assert [token for token, _ in alone] == [token for token, _ in drawn]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(alone, drawn, strict=True))


def test_settings_that_it_is_not_served_with_are_refused(llama: Served) -> None:
    def refusal(**options: str) -> str:
        with pytest.raises(ConfigError) as error:
            load_runner(llama.path, deterministic=True, device="cpu", **options)
        return str(error.value)

    assert refusal(kv_cache_dtype="fp8") == (
        "deterministic is true: it is served with a KV cache of the model's dtype, and "
        "kv_cache_dtype is 'fp8'; set false"
    )
    assert refusal(attention_backend="sdpa") == (
        "deterministic is true: it is served with attention kernels of its own, and "
        "attention_backend is 'sdpa'; set false"
    )
    assert re.match(
        "deterministic is true: LlamaForCausalLM runs on transformers' own forward",
        refusal(model_impl="transformers"),
    )
    assert refusal(dtype="float16").startswith("deterministic is true: it is served in float32 and")
    with pytest.raises(ConfigError, match="deterministic is 1"):
        config(llama.path, deterministic=1)


def test_a_gpu_is_refused(llama: Served) -> None:
    spec = llama.runner.decoder.spec
    assert row_obstacle(spec, "bfloat16", "cuda:0", "auto", "auto") == (
        "it is served on a CPU alone, and the device is cuda:0"
    )
    assert row_obstacle(spec, "bfloat16", "cpu", "auto", "auto") is None
