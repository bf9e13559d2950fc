# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The Engine keeps the contract that the scripted model checks, under every kind of pressure."""

from __future__ import annotations

import json
import random
from collections import deque

import pytest

from slipstream import _core

SCRIPT = {"vocab_size": 40, "num_blocks": 24, "tokens_per_block": 4, "max_seq_len": 64}
FULL = {"kind": "full", "num_blocks": 24}
GROUPS = {
    "full": [FULL],
    "full and sliding": [FULL, {"kind": "sliding", "window": 9, "num_blocks": 22}],
    "full and two windows": [
        FULL,
        {"kind": "sliding", "window": 6, "num_blocks": 21},
        {"kind": "chunked", "window": 10, "num_blocks": 22},
    ],
    "chunked": [{"kind": "chunked", "window": 16, "num_blocks": 16}],
    "sliding": [{"kind": "sliding", "window": 11, "num_blocks": 16}],
}


def random_prompt(rng: random.Random) -> list[int]:
    """Few different beginnings, so that prompts share prefixes of all lengths."""
    stem = [3 + (rng.randrange(2) + i) % 7 for i in range(rng.choice([0, 3, 4, 9, 16, 23]))]
    return stem + [rng.randrange(3, 9) for _ in range(rng.randrange(1, 6))]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("policy", ["GUARANTEED_NO_EVICT", "MAX_UTILIZATION"])
@pytest.mark.parametrize("seed", range(6))
def test_every_plan_is_good_and_every_stream_is_exact(policy, seed, groups):
    rng = random.Random(seed)
    model = _core.ScriptedModel(json.dumps({**SCRIPT, "kv_groups": GROUPS[groups]}))
    config = _core.ExecutorConfig()
    config.policy = getattr(_core.SchedulerPolicy, policy)
    config.max_num_seqs = rng.choice([2, 5, 8])
    config.max_num_tokens = rng.choice([3, 8, 64])
    config.pipeline_depth = rng.choice([1, 2, 3])
    config.enable_partial_reuse = rng.random() < 0.7
    config.max_restarts = 1000
    engine = _core.Engine(config, model.info)
    prompts: dict[int, tuple[list[int], int]] = {}
    got: dict[int, list[int]] = {}
    answers: deque = deque()

    def turn(now: int) -> None:
        while (plan := engine.build_step(now)) is not None:
            answers.append(model.run(plan))
        if answers:
            engine.on_result(answers.popleft(), now)
        for event in engine.take_events():
            got.setdefault(event["request"], []).extend(event["tokens"])
        assert engine.check_integrity() == ""

    for now in range(1, 600):
        if rng.random() < 0.4:
            prompt, count = random_prompt(rng), rng.randrange(1, 30)
            prompts[now] = (prompt, count)
            engine.submit(
                now, now, prompt=prompt, max_new_tokens=count, streaming=rng.random() < 0.5
            )
        if rng.random() < 0.02 and prompts:
            cancelled = rng.choice(list(prompts))
            if engine.finish(cancelled, "cancelled", now):
                prompts.pop(cancelled)
        if rng.random() < 0.01:
            model.reset()
            answers.clear()
            engine.on_worker_lost("scripted", now)
        turn(now)
    for now in range(600, 20000):
        if engine.idle:
            break
        turn(now)
    assert engine.idle
    assert len(prompts) > 100
    for request, (prompt, count) in prompts.items():
        assert got[request] == [prompt[i % len(prompt)] for i in range(count)]
    # Five sequences fill the full group's pool, eight any of the others.
    enough = 5 if FULL in GROUPS[groups] else 8
    if policy == "MAX_UTILIZATION" and config.max_num_seqs >= enough:
        assert engine.metrics()["preemptions"] > 0
