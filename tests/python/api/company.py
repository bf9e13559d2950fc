# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Ways to serve the same requests, and what may differ between their answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from slipstream.api import LLM, SamplingParams, TokenLogprobs

Answer = list[TokenLogprobs]

# Greedy tokens may differ from those of the request alone where its two best tokens are less than
# this apart in log probability: docs/families.md says where the numbers come from.
EPSILON = {"float32": 1e-4, "bfloat16": 0.625}


def answers(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams) -> list[Answer]:
    """Of all prompts, in flight together."""
    return [out.completions[0].logprobs for out in llm.generate(list(prompts), params)]


def alone(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams) -> list[Answer]:
    return [answers(llm, [prompt], params)[0] for prompt in prompts]


def in_any_company(
    path: Path, prompts: list[list[int]], params: SamplingParams, **options: object
) -> tuple[list[Answer], dict[str, list[Answer]]]:
    """The answers of each prompt alone, and those of all together, by what was special.

    options: of LLM.
    """

    def load(**more: object) -> LLM:
        settings: dict[str, object] = {"kv_cache_tokens": 1 << 15, "enable_prefix_reuse": False}
        return LLM(path, device="cpu", **{**settings, **options, **more})  # type: ignore[arg-type]

    found = {}
    order = list(range(len(prompts)))
    random.Random(1).shuffle(order)
    with load() as llm:
        lone = alone(llm, prompts, params)
        found["together"] = answers(llm, prompts, params)
        shuffled = answers(llm, [prompts[i] for i in order], params)
        found["shuffled"] = [shuffled[order.index(i)] for i in range(len(prompts))]
    with load(enable_prefix_reuse=True, max_num_tokens=40) as llm:
        found["sharing prefixes, in chunks"] = answers(llm, prompts, params)
        found["after a reused prefix"] = answers(llm, prompts, params)
        found["alone after a reused prefix"] = alone(llm, prompts[:8], params)
        assert llm.metrics()["kv_hit_tokens"] > sum(map(len, prompts)) // 2
    longest = max(map(len, prompts)) + (params.max_tokens or 0)
    small = {"policy": "max_utilization", "kv_cache_tokens": 4 * longest, "tokens_per_block": 8}
    with load(**small) as llm:
        found["preempted"] = answers(llm, prompts, params)
        assert llm.metrics()["preemptions"] > 0
    return lone, found


def first_difference(one: Answer, other: Answer) -> int | None:
    """Where two answers go on with different tokens."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((i for i, (a, b) in pairs if a.token_id != b.token_id), None)


def gap(answer: Answer, position: int) -> float:
    """Between the two most likely tokens there, in log probability."""
    best = sorted(answer[position].top.values())
    return best[-1] - best[-2]


def closest_calls(lone: list[Answer], others: list[Answer]) -> tuple[int, float, float]:
    """How many answers part; the widest gap where one does; how far the log probability of a token
    moved at most, up to there."""
    parted, widest, moved = 0, 0.0, 0.0
    for one, other in zip(lone, others, strict=False):
        where = first_difference(one, other)
        if where is not None:
            parted, widest = parted + 1, max(widest, gap(one, where))
        for a, b in zip(one[:where], other[:where], strict=True):
            moved = max(moved, *(abs(a.top[t] - b.top[t]) for t in a.top.keys() & b.top.keys()))
    return parted, widest, moved


def check(lone: list[Answer], others: list[Answer], holds: Callable[[Answer, Answer], bool]) -> int:
    """How many answers differ in anything, once ``holds`` for each pair."""
    pairs = list(zip(lone, others, strict=False))
    assert pairs
    broken = [i for i, (one, other) in enumerate(pairs) if not holds(one, other)]
    assert not broken
    return sum(one != other for one, other in pairs)
