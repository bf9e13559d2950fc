# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Scenes in which one client leaves while others are served, and what must be left of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from e2e_calls import NOT_DECOUPLED, STREAMED, Call, call
from e2e_client import joined_ids, joined_text, prompt, question, stub
from e2e_metrics import Metrics, wait_for
from e2e_server import Server, decode, tokenizer
from tritonclient.grpc import service_pb2

STAGES = ("queued", "prefill", "decode", "last token")
ENTRIES = ("core", "fused", "steps")
TEXT = "Once upon a time there was a fox"
WORDS = ("fox", "owl", "hen", "red", "blue", "house", "cup", "bird")
STAYED_TOKENS = 40  # tokens of those who stay
LEFT_TOKENS = 30  # tokens that the one who leaves asks for
SHORT_TOKENS = 10  # the same, where it leaves at the last one
AT_REST_WITHIN_S = 1.0


class Cell(NamedTuple):
    """Who leaves when, and from where."""

    transport: str
    stage: str
    entry: str

    @property
    def llm(self) -> str:
        return "unary" if self.transport in NOT_DECOUPLED else "llm"

    @property
    def model(self) -> str:
        if self.entry == "core":
            return self.llm
        name = "ensemble" if self.entry == "fused" else "steps"
        return name if self.llm == "llm" else f"unary_{name}"

    @property
    def count(self) -> int:
        return SHORT_TOKENS if self.stage == "last token" else LEFT_TOKENS

    @property
    def bystanders(self) -> int:
        return 2 if self.stage == "queued" else 1

    def when_seen(self) -> str:
        """When this server lets a backend know that the client has left; docs/interface.md has
        the same as a table."""
        early = self.stage in ("queued", "prefill")
        if self.transport in ("infer", "generate"):
            return "never"
        if self.entry == "steps":
            if self.transport == "grpc_unary":
                return "never"
            return "first response" if early else "next response"
        if self.transport == "generate_stream" and early:
            return "first response"
        return "at once"


def fields(cell: Cell, text: str, count: int, **more: Any) -> dict[str, Any]:
    stream = cell.transport in STREAMED
    more = {"exclude_input_in_output": True} | more
    if cell.entry != "core":
        return question(text, count, stream=stream, **more)
    return prompt(tokenizer()(text)["input_ids"], count, streaming=stream, **more)


def own_fields(cell: Cell, **more: Any) -> dict[str, Any]:
    """Of the one who leaves; a long prompt of its own where that is to be computed meanwhile."""
    words = random.choices(WORDS, k=300) if cell.stage == "prefill" else [TEXT]
    return fields(cell, " ".join(words), cell.count, **more)


def gauges(metrics: Metrics, llm: str) -> dict[Any, float]:
    """All of a model, but for those that only grow. Cached blocks count as free."""
    found: dict[Any, float] = {}
    for (name, labels), value in metrics.samples.items():
        told = dict(labels)
        if metrics.types.get(name) != "gauge" or told.pop("model", "") != llm:
            continue
        if not {"timestamp", "iteration_counter", "reused"}.isdisjoint(told.values()):
            continue
        if told.get("state") == "cached":
            told["state"] = "free"
        key = (name, *sorted(told.items()))
        found[key] = found.get(key, 0) + value
    return found


class Books:
    """What the metrics say of one `llm`, and how far they have moved on since this was made."""

    def __init__(self, server: Server, llm: str) -> None:
        self._server, self._llm = server, llm
        wait_for(lambda: self.now("slipstream_running") == 0, 10, "a test before this one ended")
        self._before = server.settled_metrics(llm)

    def now(self, name: str, **labels: str) -> float:
        return self._server.metrics().value(name, model=self._llm, **labels)

    def moved(self, name: str, **labels: str) -> int:
        before = self._before.value(name, model=self._llm, **labels)
        return int(self.now(name, **labels) - before)

    def ends(self) -> dict[str, int]:
        """How many sequences ended, by reason."""
        now = self._server.metrics()
        name = "slipstream_requests_finished_total"
        moved = {
            dict(labels)["reason"]: int(now.samples[name, labels])
            - int(self._before.samples[name, labels])
            for labels in now.label_sets(name, self._llm)
        }
        return {reason: count for reason, count in moved.items() if count}

    def wait_for_rest(self) -> None:
        """Until every gauge shows what it did before."""
        before = gauges(self._before, self._llm)

        def differences() -> dict[Any, tuple[float, float]]:
            now = gauges(self._server.settled_metrics(self._llm), self._llm)
            return {key: (before[key], now[key]) for key in now if before[key] != now[key]}

        deadline = time.monotonic() + AT_REST_WITHIN_S
        while left := differences():
            assert time.monotonic() < deadline, f"gauges before and now: {left}"
        self._server.settled_metrics(self._llm)  # what only grows shows it, too


@contextmanager
def bystanders(server: Server, cell: Cell) -> Iterator[None]:
    """Requests that run meanwhile and must give exactly what they always give."""
    transport = "grpc_unary" if cell.llm == "unary" else "grpc_stream"
    calls = []
    for i in range(cell.bystanders):
        like = cell._replace(transport=transport)
        calls.append(
            call(transport, server, cell.model, fields(like, f"{TEXT} {i}", STAYED_TOKENS))
        )
    yield
    for i, stayed in enumerate(calls):
        stayed.wait(30)
        assert stayed.error == ""
        ids = tokenizer()(f"{TEXT} {i}")["input_ids"]
        expected = [ids[k % len(ids)] for k in range(STAYED_TOKENS)]
        if cell.entry == "core":
            assert joined_ids(stayed.replies) == expected
        else:
            assert joined_text(stayed.replies) == decode(expected)


def wait_for_all(books: Books, cell: Cell) -> None:
    running = cell.bystanders
    wait_for(lambda: books.now("slipstream_running") == running, 5, "the others run")


def wait_for_stage(books: Books, cell: Cell) -> None:
    """Until the request that was sent last is where it is to be left."""
    if cell.stage == "queued":
        wait_for(lambda: books.now("slipstream_waiting") == 1, 5, "it waits")
        return
    wait_for(lambda: books.now("slipstream_running") == cell.bystanders + 1, 5, "it runs")
    if cell.stage == "prefill":
        return
    # Each of the two gets a token in every step. What it has now may be one or two already.
    name = "slipstream_generated_tokens_total"
    more = {"decode": 5, "last token": SHORT_TOKENS - 2}[cell.stage] * 2
    begun = books.moved(name)
    wait_for(lambda: books.moved(name) >= begun + more, 5, f"it is at: {cell.stage}")


def num_ended(server: Server, model: str) -> int:
    """Requests that ended, as Triton counts them when their last response is sent."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    statistics = stub(server.grpc).ModelStatistics(request, timeout=10).model_stats[0]
    return int(statistics.inference_stats.success.count + statistics.inference_stats.fail.count)


def time_until_ended(server: Server, model: str, act: Callable[[], None]) -> float:
    """Seconds from an act of a client to the end of one more request of the model."""
    before = num_ended(server, model)
    start = time.monotonic()
    act()
    while num_ended(server, model) == before:
        assert time.monotonic() - start < 10, "nothing ended"
    return time.monotonic() - start


def stop(server: Server, cell: Cell, name: str) -> Call:
    """A stop request over the same transport, which goes to `llm` whatever model was asked."""
    nothing = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
    return call(cell.transport, server, cell.llm, nothing, name)
