# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections at once: idle ones, streams, requests that wait and ones refused."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
from e2e_client import ask, generate_stream, prompt, question
from e2e_crowd import Crowd, Outcome
from e2e_metrics import wait_for
from e2e_recipes import CONNECTED
from e2e_server import Server, ServerPool, decode, tokenizer
from e2e_streams import Follower, Job, joined_ids

LOG = logging.getLogger(__name__)
TEXT = "Once upon a time there was a fox"
IDS = tokenizer()(TEXT)["input_ids"]
PLACES = 64 + 256  # that run, that wait
FULL = "the queue is full: "
SLACK_DESCRIPTORS = 4
SLACK_THREADS = 8  # gRPC's own pools


def echo(count: int) -> list[int]:
    """What the scripted worker answers to TEXT."""
    return [IDS[i % len(IDS)] for i in range(count)]


class HttpFollower(threading.Thread):
    """Reads one stream over HTTP to its end."""

    def __init__(self, server: Server, count: int) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self._url = server.http
        self._body = question(TEXT, count, stream=True, exclude_input_in_output=True)
        self.start()

    def run(self) -> None:
        for event in generate_stream(self._url, "ensemble", self._body):
            self.text += event["text_output"]


def refusal_seconds(server: Server, flooded: threading.Event) -> list[float]:
    """One request after the other while the queue is full: how long each refusal takes."""
    found = []
    while not flooded.is_set():
        start = time.monotonic()
        replies = ask(server.grpc, "ensemble", question(TEXT, 1))
        if replies[-1].error.startswith(FULL):
            found.append(time.monotonic() - start)
    return found


def check_answers(outcomes: list[Outcome], expected: str) -> int:
    """Each request was answered once, in full or with a refusal; how many were served."""
    served = [outcome for outcome in outcomes if not outcome.error]
    refused = [outcome for outcome in outcomes if outcome.error]
    assert {outcome.error[: len(FULL)] for outcome in refused} <= {FULL}
    assert {outcome.responses for outcome in refused} <= {1}
    assert {outcome.text for outcome in served} <= {expected}
    assert {outcome.surplus for outcome in outcomes} == {0}
    return len(served)


@pytest.mark.parametrize(
    ("kinds", "count", "tokens"),
    [
        (("http", "grpc"), 512, 30),
        pytest.param(("http",), 4096, 60, marks=pytest.mark.slow),
        pytest.param(("grpc",), 4096, 60, marks=pytest.mark.slow),
        pytest.param(("http", "grpc"), 4096, 60, marks=pytest.mark.slow),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_thousands_of_connections(
    servers: ServerPool, kinds: tuple[str, ...], count: int, tokens: int
) -> None:
    """Three in four ask at once, the others are idle; nobody's request or stream is lost."""
    server = servers.get(CONNECTED)
    process = psutil.Process(server.process.pid)
    fields = question(TEXT, tokens, stream=True, exclude_input_in_output=True)
    expected = decode(echo(tokens))

    def held() -> tuple[int, int, int]:
        return process.num_fds(), process.num_threads(), process.memory_info().rss >> 20

    def wait_until_closed(descriptors: int) -> None:
        most = descriptors + SLACK_DESCRIPTORS
        wait_for(lambda: process.num_fds() <= most, 20, "connections are closed")

    ask(server.grpc, "ensemble", fields)
    at_start = process.num_fds()
    with ExitStack() as stack:
        crowds = [
            stack.enter_context(Crowd(kind, getattr(server, kind), server.grpc)) for kind in kinds
        ]
        for crowd in crowds:  # the pools of threads are there before they are counted
            crowd.open(32)
            check_answers(crowd.ask("ensemble", fields, range(32)), expected)
            crowd.close()
        wait_until_closed(at_start)
        before = held()
        others = Follower(server, Job("llm", prompt(IDS, 10 * tokens, streaming=True)))
        others_http = HttpFollower(server, 10 * tokens)
        opened = [crowd.open(count) for crowd in crowds]
        idle = held()
        assert idle[0] >= count * len(kinds)
        asking = [number for number in range(count) if number % 4]
        for crowd in crowds:
            crowd.start_asking("ensemble", fields, asking)
        with ThreadPoolExecutor(1) as pool:
            flooded = threading.Event()
            probing = pool.submit(refusal_seconds, server, flooded)
            try:
                answers = [crowd.outcomes() for crowd in crowds]
            finally:  # or the pool waits for the probe
                flooded.set()
            refusals = probing.result()
        after = held()
        served = [check_answers(outcomes, expected) for outcomes in answers]
        assert [len(outcomes) for outcomes in answers] == [len(asking)] * len(kinds)
        # The two others have places, too, and the probe may have got some.
        assert PLACES - 8 <= sum(served) < len(asking) * len(kinds)
        for crowd in crowds:  # those that were idle until now
            late = crowd.ask("ensemble", fields, range(0, count, count // 16))
            assert check_answers(late, expected) == len(late)
        assert [crowd.close() for crowd in crowds] == [count] * len(kinds)
    others.join(120)
    assert joined_ids(others.replies)[-10 * tokens :] == echo(10 * tokens)
    assert others.late == []
    others_http.join(120)
    assert others_http.text == decode(echo(10 * tokens))
    wait_until_closed(at_start)
    wait_for(lambda: process.num_threads() <= before[1] + SLACK_THREADS, 20, "no thread is left")
    # None if the probe got a place each time.
    p50, p99 = np.percentile(refusals or [0], [50, 99]) * 1e3
    LOG.info(
        "%d connections each of %s: opened in %s s; %d served, %d refused; a refusal p50 %.1f, "
        "p99 %.1f ms (%d); descriptors, threads, resident MiB before %s, with idle ones %s, "
        "after the flood %s, closed %s", count, "+".join(kinds),
        ", ".join(f"{s:.1f}" for s in opened), sum(served),
        len(asking) * len(kinds) - sum(served), p50, p99, len(refusals), before, idle, after,
        held(),
    )  # fmt: skip
    assert p50 < 500
