# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""On a GPU: what must not change an answer does not, and a thousand requests leave nothing."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import torch

from slipstream.api import LLM, SamplingParams
from slipstream.demo import demo_model_path
from slipstream.demo.corpus import documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

_log = logging.getLogger(__name__)
GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
# Where tokens are this close to the best one in log probability, sums in another order may choose
# another; docs/performance.md tells what was seen.
CLOSE = {"float32": 1e-3, "bfloat16": 0.5}


def load(**options: Any) -> LLM:
    return LLM(demo_model_path(), max_num_seqs=64, kv_cache_tokens=65536, **options)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """64 beginnings of texts such as the model was trained on, many with a beginning in common."""
    rng = random.Random(0)
    with LLM(demo_model_path(), device="cpu", kv_cache_tokens=512) as llm:
        texts = [llm.tokenizer(text)["input_ids"] for text in islice(documents("gpu"), 24)]
    chosen = [rng.choice(texts) for _ in range(64)]
    return [ids[: rng.randint(1, min(len(ids), 400))] for ids in chosen]


def tokens_of(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.completions[0].token_ids for output in llm.generate(prompts, GREEDY)]


def check_alike(
    dtype: str, prompts: list[list[int]], ours: list[list[int]], others: list[list[int]]
) -> None:
    """Where answers part, the tokens that they go on with must have been close to the best."""
    parted = []
    for prompt, one, other in zip(prompts, ours, others, strict=True):
        same = next((i for i in range(len(one)) if one[i] != other[i]), None)
        if same is not None:
            parted.append((prompt + one[:same], {one[same], other[same]}))
    if not parted:
        return
    best = SamplingParams(max_tokens=1, logprobs=64, ignore_eos=True)
    with load(dtype=dtype, enable_prefix_reuse=False) as llm:
        outputs = llm.generate([known for known, _ in parted], best)
    gaps = []
    for output, (_, chosen) in zip(outputs, parted, strict=True):
        top = output.completions[0].logprobs[0].top
        assert chosen <= set(top)
        gaps.append(max(top.values()) - min(top[token] for token in chosen))
    _log.info("%s: %d of %d part, by up to %.4f", dtype, len(parted), len(prompts), max(gaps))
    assert max(gaps) < CLOSE[dtype]


@pytest.fixture(scope="module", params=list(CLOSE))
def plain(request: pytest.FixtureRequest, prompts: list[list[int]]) -> tuple[str, list[list[int]]]:
    """The dtype, and the answers to all prompts at once, with graphs and without reuse."""
    with load(dtype=request.param, enable_prefix_reuse=False) as llm:
        return request.param, tokens_of(llm, prompts)


def test_graphs_change_no_answer(plain, prompts) -> None:
    dtype, tokens = plain
    with load(dtype=dtype, enable_prefix_reuse=False, cuda_graphs=False) as llm:
        check_alike(dtype, prompts, tokens, tokens_of(llm, prompts))


def test_reuse_changes_no_answer(plain, prompts) -> None:
    dtype, tokens = plain
    with load(dtype=dtype) as llm:
        first = tokens_of(llm, prompts)
        outputs = llm.generate(prompts, GREEDY)
    again = [output.completions[0].token_ids for output in outputs]
    assert sum(output.cached_tokens for output in outputs) > sum(map(len, prompts)) // 2
    check_alike(dtype, prompts, tokens, first)
    check_alike(dtype, prompts, tokens, again)


def test_company_changes_no_answer(plain, prompts) -> None:
    dtype, tokens = plain
    with load(dtype=dtype, enable_prefix_reuse=False) as llm:
        alone = [tokens_of(llm, [prompt])[0] for prompt in prompts]
        turned = tokens_of(llm, prompts[::-1])[::-1]
    check_alike(dtype, prompts, tokens, alone)
    check_alike(dtype, prompts, tokens, turned)


def test_chunks_change_no_answer(plain, prompts) -> None:
    dtype, tokens = plain
    with load(dtype=dtype, enable_prefix_reuse=False, max_num_tokens=96) as llm:
        check_alike(dtype, prompts, tokens, tokens_of(llm, prompts))


@pytest.fixture
def small_pool() -> Iterator[LLM]:
    """Blocks for a few sequences only, so that they are preempted and evicted."""
    with LLM(
        demo_model_path(),
        dtype="bfloat16",
        max_num_seqs=64,
        kv_cache_tokens=3072,
        policy="max_utilization",
    ) as llm:
        yield llm


def test_a_thousand_requests_with_cancels_leave_nothing(small_pool, prompts) -> None:
    llm = small_pool
    cancelled = threading.Semaphore(0)

    def one(number: int) -> int:
        rng = random.Random(number)
        params = SamplingParams(
            max_tokens=rng.randint(1, 120),
            temperature=rng.choice([None, 0.8]),
            seed=number,
            logprobs=rng.choice([None, None, 2]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            ignore_eos=True,
        )
        stop_after = rng.randint(0, 60) if rng.random() < 0.5 else None
        stream = llm.stream(rng.choice(prompts), params)
        count = 0
        for chunk in stream:
            count += len(chunk.token_ids)
            if stop_after is not None and count > stop_after:
                stream.close()
                cancelled.release()
                return count
        assert count == params.max_tokens
        return count

    used = []
    with ThreadPoolExecutor(64) as pool:
        for start in range(0, 1000, 250):
            list(pool.map(one, range(start, start + 250)))
            free, total = torch.cuda.mem_get_info()
            used.append(total - free)
    assert cancelled._value > 100, "too few were cancelled to tell"
    end = time.monotonic() + 10
    while (metrics := llm.metrics())["running"] or metrics["kv_blocks_used"]:
        assert time.monotonic() < end, metrics
        time.sleep(0.01)
    assert metrics["waiting"] == metrics["preempted"] == 0
    assert metrics["preemptions"] > 0
    assert metrics["kv_blocks_free"] + metrics["kv_blocks_cached"] == metrics["kv_blocks_total"]
    assert used[3] - used[1] <= 4 << 20, f"the device's used memory grew: {used}"
