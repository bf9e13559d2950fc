# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""More work than a server can do: what is refused, how soon, and who goes first.

Seconds are logged: `-o log_cli=true -o log_cli_level=INFO` shows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from e2e_client import Stream, ask, http_post, prompt, question
from e2e_flood import Flood
from e2e_metrics import wait_for
from e2e_recipes import OVERLOADED
from e2e_server import Server, ServerPool, tokenizer
from e2e_timing import best_of_three, check_time

LOG = logging.getLogger(__name__)
TEXT = "Once upon a time there was a fox"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]
LONG_TEXT = " ".join(["fox owl hen"] * 100)  # seconds of prefill in chunks of 16 tokens
LONG_IDS = tokenizer()(LONG_TEXT)["input_ids"]
DEADLINE_S = 0.25
LATE_S = 0.1
HUNG_S = 0.25
TEXT_STATISTICS_S = 0.1  # how often an ensemble's are refreshed
PASSED = "the request's deadline (timeout) passed"
DISPLACED = "the queue is full: this request's place went to one of a better priority class"


@pytest.fixture
def overloaded(servers: ServerPool) -> Server:
    return servers.get(OVERLOADED)


def gauge(server: Server, name: str, model: str, **labels: str) -> float:
    return server.metrics().value(name, model=model, **labels)


def is_at_rest(server: Server, model: str) -> bool:
    """No slot, no place in the queue and no block is held."""
    metrics = server.metrics()
    values = [metrics.value(f"slipstream_{n}", model=model) for n in ("running", "waiting")]
    return [*values, metrics.value("slipstream_kv_tokens", model=model, state="used")] == [0] * 3


def wait_at_rest(server: Server, model: str, within_s: float = 5) -> None:
    wait_for(lambda: is_at_rest(server, model), within_s, "no slot, place or block is held")


def time_at_rest(server: Server, model: str) -> float:
    """When it was seen to hold nothing, by time.monotonic(): looks again at once, each look shows
    the state of at most 10 ms ago."""
    end = time.monotonic() + 5
    while not is_at_rest(server, model):
        assert time.monotonic() < end, "a slot, a place or a block is held"
    return time.monotonic()


@contextmanager
def occupied(server: Server, llm: str) -> Iterator[None]:
    """One request runs until the end of the block."""
    with Stream(server.grpc) as stream:
        stream.send(llm, prompt([7, 8], 3000, streaming=True), "occupant")
        assert not stream.next().error
        yield
        stop = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
        ask(server.grpc, llm, stop, request_id="occupant")
        assert not stream.until_final()[-1].error


def takes_text(model: str) -> bool:
    return model.endswith(("ensemble", "steps"))


def fields_of(model: str, count: int, long: bool = False, **more: Any) -> dict[str, Any]:
    if takes_text(model):
        return question(LONG_TEXT if long else TEXT, count, **more)
    return prompt(LONG_IDS if long else TEXT_IDS, count, **more)


@pytest.mark.parametrize("model", ["bounded", "bounded_ensemble", "bounded_steps"])
def test_the_queue_is_bounded_in_tokens(overloaded: Server, model: str) -> None:
    """What does not fit is refused at once, by every protocol, with the numbers."""
    rejected = "slipstream_requests_rejected_total"
    before = overloaded.settled(rejected, "bounded")
    size = len(TEXT_IDS)
    num = 40 // size
    full = (
        f"the queue is full: {num * size} prompt tokens wait, {size} more would exceed "
        "max_queue_tokens = 40"
    )
    with ExitStack() as stack:
        waiting = [stack.enter_context(Stream(overloaded.grpc)) for _ in range(num)]
        with occupied(overloaded, "bounded"):
            for stream in waiting:
                stream.send(model, fields_of(model, 3))
            wait_for(
                lambda: gauge(overloaded, "slipstream_waiting_tokens", "bounded") == num * size,
                5,
                "they wait",
            )
            [refused] = ask(overloaded.grpc, model, fields_of(model, 3))
            assert (refused.final, refused.outputs) == (True, {})
            assert full in refused.error
            path = f"/v2/models/{model}/generate"
            _, answer = http_post(overloaded.http, path, fields_of(model, 3))
            assert full in answer["error"]
        [never] = ask(overloaded.grpc, model, fields_of(model, 3, long=True))
        assert "exceed max_queue_tokens = 40" in never.error
        for stream in waiting:
            assert [reply.error for reply in stream.until_final()] == [""]
    wait_at_rest(overloaded, "bounded")
    assert overloaded.settled(rejected, "bounded") == before + 2


def ask_with_deadline(server: Server, model: str, how: str, fields: dict[str, Any]) -> str:
    """The error that the request ends with."""
    if how == "timeout_ms":
        return ask(server.grpc, model, fields | {"timeout_ms": int(DEADLINE_S * 1000)})[-1].error
    timeout = {"timeout": int(DEADLINE_S * 1e6)}
    if how == "grpc":
        return ask(server.grpc, model, fields, parameters=timeout)[-1].error
    _, answer = http_post(server.http, f"/v2/models/{model}/generate", fields | timeout)
    return str(answer["error"])


@pytest.mark.parametrize("place", ["queue", "prefill", "decode"])
@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("single", "timeout_ms"),
        ("single", "grpc"),
        ("single", "http"),
        ("single_ensemble", "timeout_ms"),
        ("single_ensemble", "grpc"),
        ("single_ensemble", "http"),
        ("single_steps", "timeout_ms"),
    ],
)
@best_of_three
def test_a_deadline_is_kept(overloaded: Server, model: str, how: str, place: str) -> None:
    """Wherever the request is then: it ends within 100 ms, and holds nothing.

    Two steps of 20 ms may name its blocks yet.
    """
    late, freed = lateness(overloaded, model, how, place)
    LOG.info("%s, %s, %s: %.1f, %.1f ms late", model, how, place, late * 1e3, freed * 1e3)
    assert late >= 0
    check_time(freed, LATE_S, "ending it and holding nothing")


def lateness(server: Server, model: str, how: str, place: str) -> tuple[float, float]:
    """Seconds from the deadline to the answer, and until nothing is held any more."""
    tokens = "slipstream_generated_tokens_total"
    with ExitStack() as stack:
        if place == "queue":
            stack.enter_context(occupied(server, "single"))
        before = server.settled(tokens, "single")
        start = time.monotonic()
        fields = fields_of(model, 3000, long=place == "prefill")
        error = ask_with_deadline(server, model, how, fields)
        late = time.monotonic() - start - DEADLINE_S
        assert PASSED in error
        if place == "queue":
            wait_for(lambda: gauge(server, "slipstream_waiting", "single") == 0, 5, "it left")
            freed = time.monotonic() - start - DEADLINE_S
        else:
            freed = time_at_rest(server, "single") - start - DEADLINE_S
            generated = server.settled(tokens, "single") - before
            assert (generated > 0) == (place == "decode")
    wait_at_rest(server, "single")
    return late, freed


@best_of_three
def test_a_deadline_does_not_wait_for_a_step(overloaded: Server) -> None:
    """A step takes 700 ms; the answer is there before it ends, the blocks come with its end."""
    start = time.monotonic()
    error = ask_with_deadline(overloaded, "sluggish", "timeout_ms", fields_of("sluggish", 5))
    assert PASSED in error
    late = time.monotonic() - start - DEADLINE_S
    assert late >= 0
    wait_at_rest(overloaded, "sluggish", 2)
    check_time(late, LATE_S, "ending it")


def signal_tokenizers(server: Server, action: str) -> None:
    """Suspends or resumes the tokenizer processes of the server."""
    children = psutil.Process(server.process.pid).children()
    found = [c for c in children if "slipstream.tokenizer" in c.cmdline()]
    assert found
    for child in found:
        getattr(child, action)()


@contextmanager
def hung_tokenizer(server: Server) -> Iterator[None]:
    signal_tokenizers(server, "suspend")
    try:
        yield
    finally:
        signal_tokenizers(server, "resume")


@best_of_three
def test_what_waits_for_the_tokenizer_is_bounded_and_keeps_its_deadline(overloaded: Server) -> None:
    """The ensemble as a whole takes max_queue_requests, whichever part of it is slow."""
    model = "single_ensemble"
    time.sleep(3 * TEXT_STATISTICS_S)
    before = overloaded.settled_metrics("single")
    with Stream(overloaded.grpc) as stream, Stream(overloaded.grpc) as better:
        with hung_tokenizer(overloaded):
            start = time.monotonic()
            error = ask_with_deadline(overloaded, model, "timeout_ms", fields_of(model, 3))
            assert PASSED in error
            late = time.monotonic() - start - DEADLINE_S
            assert late >= 0
            for _ in range(17):
                stream.send(model, fields_of(model, 1, priority=5))
            assert stream.next().error == (
                "the queue is full: 16 sequences wait, 1 more would exceed max_queue_requests = 16"
            )
            better.send(model, fields_of(model, 1, priority=4))
            assert stream.next().error == DISPLACED
            wait_for(lambda: gauge(overloaded, "slipstream_tokenizing", model) == 16, 5, "shown")
            time.sleep(HUNG_S)
        assert [stream.next().error for _ in range(15)] == [""] * 15
        assert not better.until_final()[-1].error
    wait_at_rest(overloaded, "single")
    wait_for(lambda: gauge(overloaded, "slipstream_tokenizing", model) == 0, 5, "nothing is left")
    time.sleep(3 * TEXT_STATISTICS_S)
    after = overloaded.settled_metrics("single")

    def grown(family: str, **labels: str) -> float:
        return after.value(family, **labels) - before.value(family, **labels)

    assert grown("slipstream_requests_displaced_total", model=model) == 1
    assert grown("slipstream_requests_rejected_total", model="single") == 1
    assert grown("slipstream_requests_finished_total", model=model, reason="deadline") == 1
    # From the arrival at the ensemble on.
    assert grown("slipstream_time_to_first_token_seconds_sum", model="single") > 16 * HUNG_S
    check_time(late, LATE_S, "ending it")


@pytest.mark.parametrize("model", ["yielding", "yielding_ensemble"])
def test_ten_times_too_much(overloaded: Server, model: str) -> None:
    """80 requests a second can be served: 4 at once, 10 steps of 5 ms each."""
    process = psutil.Process(overloaded.process.pid)
    with Flood(overloaded, model, 800, fields_of(model, 10)) as flood:
        time.sleep(1)
        before = process.memory_info().rss
        time.sleep(2)
        grown = process.memory_info().rss - before
        flood.stop()
    assert flood.answers.keys() == flood.sent.keys()
    for replies in flood.answers.values():
        assert [reply.final for _, reply in replies] == [True], "answered once"
    errors = {replies[0][1].error for replies in flood.answers.values()} - {""}
    assert all(error.startswith("the queue is full: ") for error in errors), errors
    refused, served = flood.seconds(refused=True), flood.seconds(refused=False)
    p50, p99 = np.percentile(refused, [50, 99]) * 1e3
    LOG.info(
        "%s: %d sent, %d served within %.0f ms, refused within p50 %.1f, p99 %.1f ms, %d KiB grown",
        model, len(flood.sent), len(served), served.max() * 1e3, p50, p99, grown >> 10,
    )  # fmt: skip
    assert len(served) > 0.5 * 80 * 3
    assert p50 < 100
    assert served.max() < 3, "20 requests are before one at most, 0.3 s of work"
    assert grown < 8 << 20
    wait_at_rest(overloaded, "yielding")


def test_a_flood_of_the_worst_class_does_not_hold_up_the_best(overloaded: Server) -> None:
    """Its queue is full all the time; the best class displaces what waits and what runs."""

    def probe() -> float:
        start = time.monotonic()
        [reply] = ask(overloaded.grpc, "yielding", prompt([5, 6], 1, priority=0))
        assert not reply.error
        return time.monotonic() - start

    alone = [probe() for _ in range(20)]
    with Flood(overloaded, "yielding", 160, fields_of("yielding", 40, priority=9)) as flood:
        full = "slipstream_waiting"
        wait_for(lambda: gauge(overloaded, full, "yielding") >= 15, 10, "the queue is full")
        served = flood.num_served()
        among = []
        for _ in range(40):
            among.append(probe())
            time.sleep(0.02)
        progress = flood.num_served() - served
        flood.stop()
    LOG.info(
        "time to first token alone p50 %.1f, max %.1f ms; in the flood p50 %.1f, max %.1f ms",
        *(f(s) * 1e3 for s in (alone, among) for f in (np.median, np.max)),
    )
    # The steps in flight, two of 5 ms, must answer before a slot changes hands.
    assert np.median(among) < np.median(alone) + 0.05
    assert progress > 0, "the worst class goes on"
    wait_at_rest(overloaded, "yielding")
