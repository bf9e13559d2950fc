# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""With an FP8 KV cache as without: reuse, chunks and preemption are not to be seen in what comes
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_checkpoints import prompts_with_a_prefix_in_common, save_llama

from slipstream.api import LLM, SamplingParams
from slipstream.api.outputs import Completion

PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2)
# A key in the middle between two e4m3 values may fall to either side of it when float operations
# come in another order, and logits move by so much at most.
BOUND = 0.003


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.1)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return prompts_with_a_prefix_in_common([1, 31, 33, 64, 70])


def completions(llm: LLM, prompts: list[list[int]]) -> list[Completion]:
    return [output.completions[0] for output in llm.generate(prompts, PARAMS)]


@pytest.fixture(scope="module")
def plain(checkpoint: Path, prompts: list[list[int]]) -> list[Completion]:
    """Each prompt by itself and whole, nothing reused."""
    with fp8(checkpoint, enable_prefix_reuse=False) as llm:
        return [completions(llm, [prompt])[0] for prompt in prompts]


def fp8(path: Path, **options: Any) -> LLM:
    return LLM(path, dtype="float32", kv_cache_dtype="fp8", **{"kv_cache_tokens": 8192} | options)


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    """The same log probabilities, and the same tokens but where two were as good."""
    whole = 0
    for ours, theirs in zip(found, expected, strict=True):
        same = True
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=BOUND)
            if one.token_id != other.token_id:
                best, second = sorted(other.top.values(), reverse=True)[:2]
                assert best - second < BOUND
                same = False
                break  # what follows is another text
        whole += same
    assert whole >= len(expected) - 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_tokens": 7, "max_num_seqs": 5},
        {"kv_cache_tokens": 320, "policy": "max_utilization", "tokens_per_block": 8},
    ],
    ids=["reuse", "chunks-of-7", "preemption"],
)
def test_tokens_and_logprobs_are_those_of_each_prompt_alone(
    checkpoint: Path, prompts: list[list[int]], plain: list[Completion], options: dict[str, Any]
) -> None:
    with fp8(checkpoint, **options) as llm:
        assert_same(completions(llm, prompts), plain)
        assert_same(completions(llm, prompts), plain)  # now with whatever the cache kept
        metrics = llm.metrics()
        assert metrics["kv_hit_tokens"] > 0
        assert metrics["kv_blocks_used"] == 0
        if "policy" in options:
            assert metrics["preemptions"] > 0


def test_the_cache_is_rounded(
    checkpoint: Path, prompts: list[list[int]], plain: list[Completion]
) -> None:
    """The comparison above is of something that differs from a cache in float32."""
    with LLM(checkpoint, dtype="float32", kv_cache_tokens=8192) as llm:
        exact = completions(llm, prompts)
    moved = [
        abs(one.logprobs[0].logprob - other.logprobs[0].logprob)
        for one, other in zip(exact, plain, strict=True)
    ]
    assert max(moved) > BOUND


def test_an_unknown_type_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RuntimeError, match="kv_cache_dtype is 'fp4': Input should be 'auto' or"):
        LLM(checkpoint, kv_cache_dtype="fp4")
