# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A client that goes away: its work ends within two seconds and nobody else notices.

Not over HTTP /generate: the server notices a closed connection only when it writes to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from e2e_client import Stream, generate_stream, joined_ids, joined_text, prompt, question
from e2e_metrics import wait_for
from e2e_server import Server, decode, tokenizer

TEXT = "Once upon a time there was a fox"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]
LONG = 3000
FREED_WITHIN_S = 2.0


def gauge(server: Server, name: str, model: str, **labels: str) -> float:
    return server.metrics().value(name, model=model, **labels)


def takes_text(model: str) -> bool:
    return model.endswith(("ensemble", "steps"))


def fields_of(model: str, count: int) -> dict[str, Any]:
    if takes_text(model):
        return question(TEXT, count, stream=True)
    return prompt(TEXT_IDS, count, streaming=True)


@contextmanager
def bystanders(server: Server, model: str) -> Iterator[None]:
    """Four streams that run meanwhile and must give exactly what they always give."""
    count = 60
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.grpc)) for _ in range(4)]
        texts = [f"{TEXT} {i}" for i in range(4)]
        for stream, text in zip(streams, texts, strict=True):
            ids = tokenizer()(text)["input_ids"]
            ensemble = takes_text(model)
            fields = question(text, count) if ensemble else prompt(ids, count)
            stream.send(model, fields | {"stream" if ensemble else "streaming": True})
        early = [[stream.next()] for stream in streams]
        yield
        for stream, text, replies in zip(streams, texts, early, strict=True):
            replies += stream.until_final()
            ids = tokenizer()(text)["input_ids"]
            expected = [ids[i % len(ids)] for i in range(count)]
            assert {reply.error for reply in replies} == {""}
            if takes_text(model):
                assert joined_text(replies) == decode(expected)
            else:
                assert joined_ids(replies) == expected
            assert stream.end() == []


def leave_grpc(server: Server, model: str) -> Callable[[], None]:
    stream = Stream(server.grpc)
    stream.send(model, fields_of(model, LONG))
    for _ in range(5):
        assert not stream.next().error
    return stream.cancel


def leave_http(server: Server, model: str) -> Callable[[], None]:
    events = generate_stream(server.http, model, fields_of(model, LONG))
    assert len(list(itertools.islice(events, 5))) == 5
    return events.close  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "leave"),
    [
        ("paced", leave_grpc),
        ("paced_ensemble", leave_grpc),
        ("paced", leave_http),
        ("paced_ensemble", leave_http),
        ("paced_steps", leave_grpc),
        ("paced_steps", leave_http),
    ],
)
def test_a_client_that_leaves_frees_what_it_held(
    scripted: Server, model: str, leave: Callable[[Server, str], Callable[[], None]]
) -> None:
    def cancelled() -> float:
        name = "slipstream_requests_finished_total"
        return gauge(scripted, name, "paced", reason="cancelled")

    before = cancelled()
    with bystanders(scripted, model):
        go = leave(scripted, model)
        wait_for(lambda: gauge(scripted, "slipstream_running", "paced") == 5, 5, "all five run")
        go()
        wait_for(
            lambda: gauge(scripted, "slipstream_running", "paced") <= 4, FREED_WITHIN_S, "it ends"
        )
        wait_for(lambda: cancelled() == before + 1, FREED_WITHIN_S, "it is counted")
    wait_for(
        lambda: (
            gauge(scripted, "slipstream_running", "paced") == 0
            and gauge(scripted, "slipstream_kv_tokens", "paced", state="used") == 0
        ),
        FREED_WITHIN_S,
        "everything is free",
    )
    assert cancelled() == before + 1


@pytest.mark.parametrize("model", ["narrow", "narrow_ensemble", "narrow_steps"])
def test_cancelled_in_the_queue(scripted: Server, model: str) -> None:
    with Stream(scripted.grpc) as first:
        first.send(model, fields_of(model, 100))
        assert not first.next().error
        second = Stream(scripted.grpc)
        second.send(model, fields_of(model, LONG))
        wait_for(lambda: gauge(scripted, "slipstream_waiting", "narrow") == 1, 5, "it waits")
        # Through the steps nothing reaches a later one before the first token.
        if model != "narrow_steps":
            second.cancel()
            wait_for(
                lambda: gauge(scripted, "slipstream_waiting", "narrow") == 0,
                FREED_WITHIN_S,
                "it left the queue",
            )
            assert gauge(scripted, "slipstream_running", "narrow") == 1
        first.until_final()
        if model == "narrow_steps":
            second.cancel()
    wait_for(
        lambda: gauge(scripted, "slipstream_running", "narrow") == 0, FREED_WITHIN_S, "both ended"
    )


def test_stop_by_id_stops_every_request_of_that_id_only(scripted: Server) -> None:
    with Stream(scripted.grpc) as stream, Stream(scripted.grpc) as control:
        stream.send("paced", prompt(TEXT_IDS, LONG, streaming=True), "x")
        stream.send("paced_ensemble", question(TEXT, LONG, stream=True), "x")
        stream.send("paced_steps", question(TEXT, LONG, stream=True), "x")
        stream.send("paced", prompt(TEXT_IDS, 100, streaming=True), "y")
        seen = {"x": 0, "y": 0}
        while min(seen.values()) < 10:
            seen[stream.next().id] += 1
        stop = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
        [answer] = control.ask("paced", stop, request_id="x")
        assert not answer.error
        finals: list[str] = []
        while len(finals) < 4:
            reply = stream.next()
            assert not reply.error
            finals += [reply.id] * reply.final
        assert finals == ["x", "x", "x", "y"]
        assert stream.end() == []
        assert control.end() == []
