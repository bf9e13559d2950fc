# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker that fails under 64 streams: each ends as it would have, with nothing repeated or lost.

The seconds without tokens are logged: `-o log_cli=true -o log_cli_level=INFO` shows them.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from e2e_client import ask, joined_ids, load, prompt
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
# What runs beside a sequence changes the last digits of its log probabilities (by up to 1.3e-5 of
# 12.9 in one run), nothing else.
TOLERANCE = 1e-4
POISON = 2222  # a token that no text here has
KILLED = "the worker died: killed by signal 9"
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


def on_mortal(job: Job) -> Job:
    return replace(job, model="mortal" if job.model == "llm" else "mortal_ensemble")


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
        alternatives = [log_probs(f.replies, "top_log_prob_ids") for f in (mine, theirs)]
        np.testing.assert_array_equal(*alternatives)
        for name in LOG_PROBS:
            expected = log_probs(theirs.replies, name)
            found = log_probs(mine.replies, name)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def survive(
    server: Server, normal: Undisturbed, name: str, fault: Callable[[], None], *reasons: str
) -> None:
    """A fault in the middle of all streams, of which some wait; each ends as it always does.

    The worker is restarted as often as there are reasons, which the server's log gives.
    """
    before = server.settled(RESTARTS, "llm")
    interrupted: list[Follower] = []

    def disturb(followers: list[Follower]) -> None:
        interrupted.extend(wait_for_the_middle(followers, normal.num_replies() // 6))
        assert len(interrupted) >= 8
        assert not all(follower.replies for follower in followers), "some wait"
        fault()

    followers = follow(server, normal.jobs, disturb)
    note_pauses(name, interrupted)
    assert_equal(followers, normal.followers)
    wait_for(lambda: value(server, RESTARTS) == before + len(reasons), 5, "restarts are counted")
    assert server.settled("slipstream_ready", "llm") == 1
    assert len(server.workers()) == 1
    told = [line for line in server.process.tail(1000) if "model llm: the worker failed: " in line]
    for line, reason in zip(told[-len(reasons) :], reasons, strict=True):
        assert reason in line


def test_the_streams_are_what_they_are_meant_to_be(normal: Undisturbed) -> None:
    ends = [end for follower in normal.followers for end in outcomes(follower.replies)]
    reasons = [end.finish_reason for end in ends]
    assert len(ends) == 72, "eight have two sequences"
    assert 8 <= reasons.count("stop_sequence") <= 24
    assert reasons.count("stop_sequence") + reasons.count("length") == 72
    assert sum(log_probs(f.replies).size > 0 for f in normal.followers) == 16


def test_killed(faulty: Server, normal: Undisturbed) -> None:
    [worker] = faulty.workers()
    survive(faulty, normal, "SIGKILL", worker.kill, KILLED)


def test_stopped(faulty: Server, normal: Undisturbed) -> None:
    [worker] = faulty.workers()
    survive(faulty, normal, "SIGSTOP, watchdog 3 s", worker.suspend, "within watchdog_ms = 3000")


def test_an_exception_in_a_step(faulty: Server, faults: Faults, normal: Undisturbed) -> None:
    survive(
        faulty, normal, "exception", lambda: faults.at_steps("exception"), "a fault inside a step"
    )


def test_out_of_memory_in_three_steps_in_a_row(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    kinds = ("gpu memory", "memory", "python memory")
    reasons = ("CUDA out of memory", "can't allocate memory", "MemoryError")
    name = "out of memory, three times"
    survive(faulty, normal, name, lambda: faults.at_steps(*kinds), *reasons)


def test_garbage_on_the_link(faulty: Server, faults: Faults, normal: Undisturbed) -> None:
    survive(
        faulty,
        normal,
        "garbage",
        lambda: faults.at_steps("garbage"),
        "something that is not a frame",
    )


def test_killed_and_killed_again_while_it_loads(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    [worker] = faulty.workers()

    def twice() -> None:
        faults.at_loads("kill")
        worker.kill()

    survive(
        faulty, normal, "SIGKILL, again while loading", twice, KILLED, f"restart failed: {KILLED}"
    )


def test_killed_while_idle(faulty: Server, normal: Undisturbed) -> None:
    before = faulty.settled(RESTARTS, "llm")
    faulty.workers()[0].kill()
    wait_for(lambda: value(faulty, RESTARTS) == before + 1, 5, "the death is seen")
    wait_for(lambda: value(faulty, "slipstream_ready") == 1, 30, "nobody has to ask for it")
    assert_equal(follow(faulty, normal.jobs[:8]), normal.followers[:8])
    assert faulty.settled(RESTARTS, "llm") == before + 1


def test_a_request_that_kills_every_worker_is_ended_and_no_other(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    """It comes last, is among the 24 that run when 23 older ones do, and kills at its prompt."""
    before = faulty.settled(RESTARTS, "llm")
    faults.poison(POISON)
    jobs = normal.jobs[:23]
    deadly: list[Follower] = []

    def send_poison(followers: list[Follower]) -> None:
        assert len(wait_for_the_middle(followers, 8 * 23)) >= 16
        deadly.append(Follower(faulty, Job("llm", prompt([POISON, 5, 6], 30, streaming=True))))

    followers = follow(faulty, jobs, send_poison)
    deadly[0].join(60)
    [reply] = deadly[0].replies
    assert (reply.final, deadly[0].late) == (True, [])
    assert KILLED in reply.error
    note_pauses("a request that kills", followers)
    assert_equal(followers, normal.followers[:23])
    assert faulty.settled(RESTARTS, "llm") == before + 4, "max_restarts is 3"
    wait_for(lambda: value(faulty, "slipstream_ready") == 1, 30, "the model serves on")
    faults.poison(None)
    fields = prompt([POISON, 5, 6], 4, streaming=True)
    assert len(joined_ids(ask(faulty.grpc, "llm", fields))) == 4


def test_no_number_of_requests_that_kill_ends_the_model(faulty: Server, faults: Faults) -> None:
    """Two together while nobody else asks, then one that tries again."""
    before = faulty.settled(RESTARTS, "llm")
    faults.poison(POISON)
    fields = prompt([POISON, 5, 6], 30, streaming=True)
    # Two deaths in both, then two of each alone; one more if only the first was there at the first.
    for number, deaths in ((2, (6, 7)), (1, (10, 11))):
        deadly = [Follower(faulty, Job("llm", fields)) for _ in range(number)]
        for follower in deadly:
            follower.join(60)
            [reply] = follower.replies
            assert reply.final
            assert KILLED in reply.error
        wait_for(
            lambda deaths=deaths: value(faulty, RESTARTS) - before in deaths, 5, "the last restart"
        )
    faults.poison(None)
    assert len(joined_ids(ask(faulty.grpc, "llm", prompt([POISON, 5, 6], 4, streaming=True)))) == 4


def test_past_max_restarts_every_stream_gets_its_error(
    faulty: Server, faults: Faults, normal: Undisturbed
) -> None:
    """`mortal` may be restarted once: its second worker dies while it loads."""
    load(faulty.grpc, "mortal")
    load(faulty.grpc, "mortal_ensemble")
    died = 0.0

    def kill(followers: list[Follower]) -> None:
        nonlocal died
        assert len(wait_for_the_middle(followers, normal.num_replies() // 6)) >= 8
        faults.at_loads("kill")
        faulty.workers()[-1].kill()
        wait_for(lambda: faults.left() == "", 30, "the second death")
        died = time.monotonic()

    followers = follow(faulty, [on_mortal(job) for job in normal.jobs], kill)
    ended = [f for f in followers if f.replies[-1].error]
    assert len(ended) > 32
    for follower in ended:
        assert follower.times[-1] - died < 5
        assert [reply.final for reply in follower.replies].count(True) == 1
        assert follower.late == []
        assert follower.replies[-1].error.endswith("(gave up after max_restarts = 1)")
    wait_for(lambda: not faulty.is_ready("mortal"), 5, "it is withdrawn")
    # Not ready comes first: it is unloaded, and then refused with the reason.
    reason = f"restart failed: {KILLED}"
    wait_for(lambda: reason in faulty.state_of("mortal")[1], 5, "the server tells why")
    assert faulty.is_ready("llm")
