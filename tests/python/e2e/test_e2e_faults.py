# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker that fails under 64 streams: each ends as it would have, with nothing repeated or lost.

The seconds without tokens are logged: `-o log_cli=true -o log_cli_level=INFO` shows them.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from e2e_faults import Faults
from e2e_metrics import wait_for
from e2e_recipes import FAULTY
from e2e_server import Server, ServerPool
from e2e_streams import (
    LOG_PROBS,
    TEXTS,
    Follower,
    Job,
    follow,
    log_probs,
    make_job,
    mixed_jobs,
    outcomes,
    wait_for_the_middle,
)

LOG = logging.getLogger(__name__)
# What runs beside a sequence changes the last digits of its log probabilities, nothing else.
TOLERANCE = 1e-4
RESTARTS = "slipstream_worker_restarts_total"


@dataclass(frozen=True)
class Undisturbed:
    """The jobs, and how they ended when nothing failed."""

    jobs: list[Job]
    followers: list[Follower]

    def num_replies(self) -> int:
        return sum(len(follower.replies) for follower in self.followers)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faulty(servers: ServerPool, faults: Faults) -> Server:
    executable = {"python_executable": str(faults.executable)}
    return servers.get(replace(FAULTY, overrides=FAULTY.overrides | executable))


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Undisturbed]:
    return {}


@pytest.fixture
def normal(faulty: Server, undisturbed: dict[str, Undisturbed]) -> Undisturbed:
    """One run without a fault, which all others are compared with."""
    if "run" not in undisturbed:
        plain = follow(faulty, [make_job("llm", False, text, {}) for text in TEXTS])
        texts = [outcomes(follower.replies)[0].text for follower in plain]
        jobs = mixed_jobs([text[int(len(text) * 0.7) :][:6] for text in texts])
        undisturbed["run"] = Undisturbed(jobs, follow(faulty, jobs))
        note_pauses("nothing", undisturbed["run"].followers)
    return undisturbed["run"]


@pytest.fixture(autouse=True)
def nothing_is_left(faulty: Server, faults: Faults) -> Iterator[None]:
    """Every fault happened, and no slot or block stays behind."""
    yield
    assert faults.left() == ""
    wait_for(lambda: is_at_rest(faulty), 5, "all blocks are free or cached")


def value(server: Server, name: str, model: str = "llm", **labels: str) -> float:
    return server.metrics().value(name, model=model, **labels)


def is_at_rest(server: Server, model: str = "llm") -> bool:
    metrics = server.metrics()

    def blocks(kind: str) -> float:
        name = "nv_trt_llm_kv_cache_block_metrics"
        return metrics.value(name, model=model, kv_cache_block_type=kind)

    tokens = {
        state: metrics.value("slipstream_kv_tokens", model=model, state=state)
        for state in ("used", "cached", "free")
    }
    return (
        tokens["used"] == 0
        and tokens["cached"] + tokens["free"] == FAULTY.overrides["kv_cache_tokens"]
        and (blocks("used"), blocks("free")) == (0, blocks("max"))
        and metrics.value("slipstream_running", model=model) == 0
        and metrics.value("slipstream_waiting", model=model) == 0
    )


def note_pauses(fault: str, followers: list[Follower]) -> None:
    pauses = [follower.longest_pause() for follower in followers]
    LOG.info(
        "without tokens, %s: median %.2f s, max %.2f s of %d streams",
        fault,
        statistics.median(pauses),
        max(pauses),
        len(pauses),
    )


def assert_equal(got: list[Follower], want: list[Follower]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert outcomes(mine.replies) == outcomes(theirs.replies)
        assert [reply.final for reply in mine.replies].count(True) == 1
        assert mine.late == []
        for name in LOG_PROBS:
            expected = log_probs(theirs.replies, name)
            found = log_probs(mine.replies, name)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def survive(
    server: Server, normal: Undisturbed, name: str, fault: Callable[[], None], restarts: int
) -> None:
    """A fault in the middle of all streams, of which some wait; each ends as it always does."""
    before = value(server, RESTARTS)
    interrupted: list[Follower] = []

    def disturb(followers: list[Follower]) -> None:
        interrupted.extend(wait_for_the_middle(followers, normal.num_replies() // 6))
        assert len(interrupted) >= 8
        assert not all(follower.replies for follower in followers), "some wait"
        fault()

    followers = follow(server, normal.jobs, disturb)
    note_pauses(name, interrupted)
    assert_equal(followers, normal.followers)
    wait_for(lambda: value(server, RESTARTS) == before + restarts, 5, "restarts are counted")
    assert value(server, "slipstream_ready") == 1
    assert len(server.workers()) == 1


def test_the_streams_are_what_they_are_meant_to_be(normal: Undisturbed) -> None:
    ends = [end for follower in normal.followers for end in outcomes(follower.replies)]
    reasons = [end.finish_reason for end in ends]
    assert len(ends) == 72, "eight have two sequences"
    assert 8 <= reasons.count("stop_sequence") <= 24
    assert reasons.count("stop_sequence") + reasons.count("length") == 72
    assert sum(log_probs(f.replies).size > 0 for f in normal.followers) == 16


def test_killed(faulty: Server, normal: Undisturbed) -> None:
    [worker] = faulty.workers()
    survive(faulty, normal, "SIGKILL", worker.kill, 1)


def test_stopped(faulty: Server, normal: Undisturbed) -> None:
    [worker] = faulty.workers()
    survive(faulty, normal, "SIGSTOP, watchdog 3 s", worker.suspend, 1)


def test_an_exception_in_a_step(faulty: Server, faults: Faults, normal: Undisturbed) -> None:
    survive(faulty, normal, "exception", lambda: faults.at_steps("exception"), 1)


def test_out_of_memory_in_three_steps_in_a_row(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    kinds = ("gpu memory", "memory", "python memory")
    survive(faulty, normal, "out of memory, three times", lambda: faults.at_steps(*kinds), 3)


def test_garbage_on_the_link(faulty: Server, faults: Faults, normal: Undisturbed) -> None:
    survive(faulty, normal, "garbage", lambda: faults.at_steps("garbage"), 1)


def test_killed_and_killed_again_while_it_loads(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    [worker] = faulty.workers()

    def twice() -> None:
        faults.at_loads("kill")
        worker.kill()

    survive(faulty, normal, "SIGKILL, again while loading", twice, 2)


def test_killed_while_idle(faulty: Server, normal: Undisturbed) -> None:
    before = value(faulty, RESTARTS)
    faulty.workers()[0].kill()
    wait_for(lambda: value(faulty, RESTARTS) == before + 1, 5, "the death is seen")
    wait_for(lambda: value(faulty, "slipstream_ready") == 1, 30, "nobody has to ask for it")
    assert_equal(follow(faulty, normal.jobs[:8]), normal.followers[:8])
    assert value(faulty, RESTARTS) == before + 1
