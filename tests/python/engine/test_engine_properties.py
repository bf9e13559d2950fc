# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Random workloads through the real Engine: every invariant after every step, exact outputs."""

from __future__ import annotations

import random
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_worker import ModelWorker, expected_output

from slipstream import _core

VOCAB = 50
END_ID = 7
MAX_SEQ_LEN = 200
MILLISECOND = 1_000_000


@dataclass
class Sent:
    prompt: list[int]
    max_new: int
    n: int
    streaming: bool
    deadline: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    done: int = 0


def random_groups(rng: random.Random, block: int, max_num_tokens: int) -> list[_core.KvGroup]:
    """At times one full group, else windows beside or without it, with tight pools."""
    groups = [_core.KvGroup("full", rng.randint(2, 40))] if rng.random() < 0.7 else []
    for _ in range(rng.choice([0, 1, 1, 2]) if groups else rng.choice([1, 2])):
        kind, window = rng.choice(["sliding", "chunked"]), rng.randint(1, 20)
        # What CheckKvGroups asks for: a window, the block behind it, the chunks of a step.
        least = (window - 1 + block - 2) // block + 2
        least = min(least + max_num_tokens // block, -(-MAX_SEQ_LEN // block))
        if groups and groups[0].kind == "full":
            least = min(least, groups[0].num_blocks)
        groups.append(_core.KvGroup(kind, least + rng.choice([0, 1, 3, 10]), window))
    return groups


class Harness:
    """An Engine, a strict worker, and what every request must have received at the end."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.block = rng.choice([1, 2, 4, 8])
        config = _core.ExecutorConfig()
        config.max_num_seqs = rng.randint(1, 6)
        config.max_num_tokens = rng.choice([1, 3, 8, 64])
        config.policy = rng.choice(
            [_core.SchedulerPolicy.GUARANTEED_NO_EVICT, _core.SchedulerPolicy.MAX_UTILIZATION]
        )
        config.enable_chunked_prefill = rng.random() < 0.8
        config.enable_prefix_reuse = rng.random() < 0.8
        config.enable_partial_reuse = rng.random() < 0.7
        config.pipeline_depth = rng.randint(1, 3)
        config.priority_ageing_ms = rng.choice([0, 5])
        config.max_queue_requests = 0
        config.max_restarts = 1000
        self.config = config
        self.groups = random_groups(rng, self.block, config.max_num_tokens)
        self.num_blocks = self.groups[0].num_blocks
        self.worker = self.new_worker()
        info = _core.WorkerInfo()
        info.vocab_size = VOCAB
        info.max_seq_len = MAX_SEQ_LEN
        info.tokens_per_block = self.block
        info.kv_groups = self.groups
        self.engine = _core.Engine(config, info)
        self.now = 1
        self.sent: dict[int, Sent] = {}
        self.pending: deque[_core.StepResult] = deque()
        self.last_step = 0

    def new_worker(self) -> ModelWorker:
        return ModelWorker(self.groups, self.block, VOCAB)

    def submit(self) -> None:
        rng = self.rng
        shared = [(i * 3) % VOCAB for i in range(30)]
        prompt = shared[: rng.randint(0, 20)] + [
            rng.randrange(VOCAB) for _ in range(rng.randint(1, 8))
        ]
        request = Sent(prompt, rng.randint(1, 12), rng.choice([1, 1, 1, 3]), rng.random() < 0.5, 0)
        fields = {"deadline": self.now + rng.randint(1, 60)} if rng.random() < 0.1 else {}
        request.deadline = fields.get("deadline", 0)
        number = len(self.sent) + 1
        never = pytest.raises(ValueError, match="input_ids")
        refused = never if self.never_fits(request) else nullcontext()
        with refused:
            self.engine.submit(
                number,
                self.now,
                prompt=prompt,
                max_new_tokens=request.max_new,
                num_return_sequences=request.n,
                streaming=request.streaming,
                end_ids=[END_ID],
                priority=rng.choice([0, 0, 3, 9]),
                cache_salt=rng.choice([0, 0, 1]),
                retention_ranges=[(0, -1, rng.choice([10, 35, 90]), rng.choice([-1, 3]))],
                **fields,
            )
            self.sent[number] = request

    def never_fits(self, request: Sent) -> bool:
        length = len(request.prompt) + request.max_new - 1
        too_long = self.groups[0].kind == "full" and length > self.num_blocks * self.block
        whole = not self.config.enable_chunked_prefill
        return too_long or (whole and len(request.prompt) > self.config.max_num_tokens)

    def build(self) -> bool:
        plan = self.engine.build_step(self.now)
        if plan is None:
            return False
        if self.config.enable_chunked_prefill:
            assert sum(plan.num_tokens) <= self.config.max_num_tokens
        assert len(plan.slot) <= self.config.max_num_seqs
        self.pending.append(self.worker.run(plan))
        return True

    def answer(self) -> bool:
        if not self.pending:
            return False
        self.engine.on_result(self.pending.popleft(), self.now)
        return True

    def lose_workers(self, count: int) -> None:
        """Each after the first gets a step and does not answer it: suspects run alone then."""
        for death in range(count):
            if death > 0:
                self.build()
            self.pending.clear()
            self.engine.on_worker_lost("killed by the test", self.now)
            self.check()
            last = self.worker.last_step
            self.worker = self.new_worker()
            self.worker.last_step = last

    def check(self) -> None:
        assert self.engine.check_integrity() == ""
        for event in self.engine.take_events():
            request = self.sent[event["request"]]
            index = event["sequence_index"]
            assert index not in request.reasons, "an event after the terminal one"
            request.tokens.setdefault(index, []).extend(event["tokens"])
            if not request.streaming:
                assert event["reason"], "a partial event for a request that does not stream"
            if event["reason"]:
                request.reasons[index] = event["reason"]
            request.done += event["request_done"]

    def act(self) -> None:
        roll = self.rng.random()
        if roll < 0.25:
            self.submit()
        elif roll < 0.60:
            self.build()
        elif roll < 0.93:
            self.answer()
        elif roll < 0.97 and self.sent:
            self.engine.finish(self.rng.choice(list(self.sent)), "cancelled", self.now)
        elif roll < 0.98:
            self.lose_workers(self.rng.choice([1, 1, 2, 3]))
        else:
            self.now += self.rng.randint(1, 20) * MILLISECOND
            self.engine.expire_deadlines(self.now)
        self.now += 1
        self.check()

    def drain(self) -> None:
        limit = 20 + sum((len(r.prompt) + r.max_new + 2) * r.n * 4 for r in self.sent.values())
        for _ in range(limit * 20):
            if self.engine.idle:
                return
            self.now += 1
            built = self.build()
            answered = self.answer()
            self.check()
            assert built or answered, "work waits and nothing moves"
        raise AssertionError("the workload does not end")

    def verify(self) -> None:
        for request in self.sent.values():
            assert request.done == 1
            assert sorted(request.reasons) == list(range(request.n))
            full = expected_output(request.prompt, request.max_new, VOCAB, self.groups, END_ID)
            for index, reason in request.reasons.items():
                tokens = request.tokens[index]
                assert tokens == full[: len(tokens)]
                if reason in {"stop", "length"}:
                    assert tokens == full
                    assert reason == ("length" if len(full) == request.max_new else "stop")
                else:
                    assert reason in {"cancelled", "deadline"}
        metrics = self.engine.metrics()
        assert metrics["kv_blocks_used"] == 0
        assert metrics["kv_blocks_free"] + metrics["kv_blocks_cached"] == self.num_blocks
        assert metrics["running"] == metrics["waiting"] == 0
        assert sum(metrics["finished"].values()) == sum(r.n for r in self.sent.values())


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), actions=st.integers(5, 250))
def test_random_workloads_keep_every_invariant(seed: int, actions: int) -> None:
    harness = Harness(random.Random(seed))
    for _ in range(actions):
        harness.act()
    harness.drain()
    harness.verify()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_workloads() -> None:
    for seed in range(20_000):
        harness = Harness(random.Random(seed))
        for _ in range(harness.rng.randint(5, 400)):
            harness.act()
        harness.drain()
        harness.verify()
