# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every way a request can end: one terminal response, the right reason and the right counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from e2e_client import (
    Reply,
    Stream,
    ask,
    ending,
    generate,
    infer,
    joined_ids,
    joined_text,
    load,
    prompt,
    question,
    unload,
)
from e2e_metrics import wait_for
from e2e_server import END_ID, Server, decode, tokenizer

TEXT = "Once upon a time there was a fox"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]
COUNTS = {"return_finish_reason": True, "return_usage": True}
PATHS = ["llm", "ensemble", "steps"]


def paths_of(variant: str) -> list[str]:
    return [variant, f"{variant}_ensemble", f"{variant}_steps"]


def takes_text(model: str) -> bool:
    return model.endswith(("ensemble", "steps"))


@dataclass(frozen=True)
class Expected:
    """How a request must end."""

    reason: str
    completion_tokens: int
    ids: list[int]
    stop_reason: str = ""
    text: str | None = None


def echo_of(ids: list[int], count: int) -> list[int]:
    return [ids[i % len(ids)] for i in range(count)]


def fields_of(model: str, count: int, **more: Any) -> dict[str, Any]:
    """A request for TEXT, as `llm` or its ensemble takes it."""
    more = COUNTS | more
    if takes_text(model):
        if "streaming" in more:
            more["stream"] = more.pop("streaming")
        return question(TEXT, count, exclude_input_in_output=True, **more)
    if "stop_words" in more:
        more["stop_strings"] = more.pop("stop_words")
    return prompt(TEXT_IDS, count, exclude_input_in_output=True, return_text=True, **more)


def check(model: str, replies: list[Reply], expected: Expected, prompt_tokens: int) -> None:
    """`replies`: everything on a stream that held this request alone, up to its end."""
    assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]
    assert {reply.error for reply in replies} == {""}
    assert ending(replies) == expected.reason
    assert ending(replies, "stop_reason") == expected.stop_reason
    assert "finish_reason" in replies[-1].outputs, "the last response is the terminal one"
    if not takes_text(model):
        assert joined_ids(replies) == expected.ids
    text = decode(expected.ids) if expected.text is None else expected.text
    assert joined_text(replies) == text
    assert replies[-1].one("prompt_tokens") == prompt_tokens
    assert replies[-1].one("completion_tokens") == expected.completion_tokens


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("model", PATHS)
def test_length(scripted: Server, model: str, streaming: bool) -> None:
    replies = ask(scripted.grpc, model, fields_of(model, 11, streaming=streaming))
    check(model, replies, Expected("length", 11, echo_of(TEXT_IDS, 11)), len(TEXT_IDS))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("include", [False, True])
def test_stop_string(scripted: Server, model: str, streaming: bool, include: bool) -> None:
    stop = "me th"  # in the middle of two words, across tokens
    used = next(n for n in range(1, 40) if stop in decode(TEXT_IDS[:n]))
    cut = TEXT.index(stop) + (len(stop) if include else 0)
    fields = fields_of(
        model,
        40,
        streaming=streaming,
        stop_words=["unheard of", stop],
        include_stop_in_output=include,
    )
    replies = ask(scripted.grpc, model, fields)
    expected = Expected("stop_sequence", used, TEXT_IDS[:used], stop, TEXT[:cut])
    check(model, replies, expected, len(TEXT_IDS))


def test_stop_words_as_tokens(scripted: Server) -> None:
    ids = [301, 302, 303, 304, 305]
    words = np.array([[[304, 302, 303, 999], [1, 3, 4, -1]]], np.int32)  # 304; 302 303; 999
    for streaming in (False, True):
        fields = prompt(ids, 30, stop_words_list=words, streaming=streaming, **COUNTS)
        replies = ask(scripted.grpc, "llm", fields | {"exclude_input_in_output": True})
        expected = Expected("stop_sequence", 3, ids[:3], "302 303", "")
        check("llm", replies, expected, len(ids))


@pytest.mark.parametrize("streaming", [False, True])
def test_end_id(scripted: Server, streaming: bool) -> None:
    ids = [501, 502, END_ID, 503]
    more = {"streaming": streaming, "return_text": True, "exclude_input_in_output": True} | COUNTS
    replies = ask(scripted.grpc, "llm", prompt(ids, 30, **more))
    # The end id is counted but not part of the output.
    check("llm", replies, Expected("stop", 3, ids[:2], str(END_ID)), 4)
    replies = ask(scripted.grpc, "llm", prompt(ids, 6, end_id=503, **more))
    check("llm", replies, Expected("stop", 4, ids[:3], "503"), 4)
    replies = ask(scripted.grpc, "llm", prompt(ids, 6, end_id=-1, **more))
    check("llm", replies, Expected("length", 6, echo_of(ids, 6)), 4)


@pytest.mark.parametrize("model", PATHS)
def test_end_id_through_the_ensemble(scripted: Server, model: str) -> None:
    end = TEXT_IDS[3]
    replies = ask(scripted.grpc, model, fields_of(model, 30, end_id=end, streaming=True))
    check(model, replies, Expected("stop", 4, TEXT_IDS[:3], str(end)), len(TEXT_IDS))


@pytest.mark.parametrize("model", paths_of("short"))
def test_context_full(scripted: Server, model: str) -> None:
    room = 24 - len(TEXT_IDS)
    replies = ask(scripted.grpc, model, fields_of(model, room, streaming=True))
    check(model, replies, Expected("length", room, echo_of(TEXT_IDS, room)), len(TEXT_IDS))
    [refused] = ask(scripted.grpc, model, fields_of(model, room + 1))
    assert refused.final
    assert "= 25 exceed the model's max_seq_len of 24" in refused.error


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("how", ["timeout_ms", "triton"])
def test_deadline(scripted: Server, model: str, how: str) -> None:
    paced = "paced" if model == "llm" else f"paced_{model}"
    before = scripted.settled_metrics("paced")
    fields = fields_of(paced, 3000, streaming=True)
    with Stream(scripted.grpc) as stream:
        if how == "timeout_ms":
            stream.send(paced, fields | {"timeout_ms": 600})
        else:
            stream.send(paced, fields, parameters={"timeout": 600_000})
        replies = stream.until_final()
        assert stream.end() == []
    assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]
    assert [reply.error for reply in replies[:-1]] == [""] * (len(replies) - 1)
    assert "deadline" in replies[-1].error
    text = joined_text(replies)
    assert decode(echo_of(TEXT_IDS, 3000)).startswith(text)
    assert 1 <= replies[-2].one("completion_tokens") <= 31  # 600 ms of steps of 20 ms
    name, labels = "slipstream_requests_finished_total", {"model": "paced", "reason": "deadline"}
    wait_for(
        lambda: scripted.metrics().value(name, **labels) == before.value(name, **labels) + 1,
        2,
        "the deadline is counted once",
    )


@pytest.mark.parametrize("model", paths_of("narrow"))
def test_full_queue_rejects(scripted: Server, model: str) -> None:
    def waiting() -> float:
        return scripted.metrics().value("slipstream_waiting", model="narrow")

    def running() -> float:
        return scripted.metrics().value("slipstream_running", model="narrow")

    with Stream(scripted.grpc) as first, Stream(scripted.grpc) as second:
        first.send(model, fields_of(model, 60, streaming=True))
        wait_for(lambda: running() == 1, 5, "the first runs")
        second.send(model, fields_of(model, 5, streaming=True))
        wait_for(lambda: waiting() == 1, 5, "the second waits")
        [refused] = ask(scripted.grpc, model, fields_of(model, 5, streaming=True))
        assert refused.final
        full = "the queue is full: 1 sequences wait, 1 more would exceed max_queue_requests = 1"
        assert full in refused.error
        _, answer = generate(scripted.http, model, fields_of(model, 5))
        assert "the queue is full" in answer["error"]
        for stream, count in ((first, 60), (second, 5)):
            expected = Expected("length", count, echo_of(TEXT_IDS, count))
            check(model, stream.until_final(), expected, len(TEXT_IDS))
            assert stream.end() == []


@contextmanager
def loaded(server: Server, name: str) -> Iterator[None]:
    """A model and its ensembles, loaded anew and unloaded afterwards."""
    models = paths_of(name)
    for model in models:
        load(server.grpc, model)
    try:
        yield
    finally:
        for model in reversed(models):
            unload(server.grpc, model)
        wait_for(lambda: not any(map(server.is_ready, models)), 10, f"{name} unloads")


@pytest.mark.parametrize("model", paths_of("failing"))
def test_error_of_the_worker(scripted: Server, model: str) -> None:
    with loaded(scripted, "failing"):
        replies = ask(scripted.grpc, model, fields_of(model, 30, streaming=True))
        assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]
        # Steps 1 to 3 give three tokens, the fourth fails, and no restart is allowed.
        assert joined_text(replies) == decode(TEXT_IDS[:3])
        assert replies[-2].one("completion_tokens") == 3
        assert "scripted failure at step 4" in replies[-1].error
        assert all("finish_reason" not in reply.outputs for reply in replies)


def test_preempted_then_done(scripted: Server) -> None:
    def preemptions() -> float:
        return scripted.metrics().value("slipstream_preemptions_total", model="cramped")

    def used() -> float:
        return scripted.metrics().value("slipstream_kv_tokens", model="cramped", state="used")

    before = preemptions()
    streams = [Stream(scripted.grpc) for _ in range(4)]
    prompts = [[700 + 10 * i + j for j in range(6)] for i in range(4)]
    # Each needs 9 of the 12 blocks: 6 + 30 tokens less the last, by 4.
    for stream, ids in zip(streams, prompts, strict=True):
        fields = prompt(ids, 30, streaming=True, exclude_input_in_output=True, **COUNTS)
        stream.send("cramped", fields)
    for stream, ids in zip(streams, prompts, strict=True):
        replies = stream.until_final()
        check("cramped", replies, Expected("length", 30, echo_of(ids, 30), text=""), 6)
        assert stream.end() == []
    wait_for(lambda: preemptions() > before, 2, "sequences were preempted")
    wait_for(lambda: used() == 0, 2, "every block is released")


@pytest.mark.parametrize("model", paths_of("paced"))
@pytest.mark.parametrize("streaming", [False, True])
def test_stop_request(scripted: Server, model: str, streaming: bool) -> None:
    tokens = "slipstream_generated_tokens_total"
    before = scripted.settled(tokens, "paced")
    with Stream(scripted.grpc) as stream, Stream(scripted.grpc) as control:
        stream.send(model, fields_of(model, 2000, streaming=streaming), "to be stopped")
        replies = []
        if streaming:
            replies = [stream.next() for _ in range(3)]
        else:
            wait_for(
                lambda: scripted.metrics().value(tokens, model="paced") >= before + 3,
                5,
                "the request generates",
            )
        stop = {
            "input_ids": [0],
            "input_lengths": 0,
            "request_output_len": 0,
            "stop": True,
        }
        [answer] = control.ask("paced", stop, request_id="to be stopped")
        assert (answer.outputs, answer.error, answer.final) == ({}, "", True)
        replies += stream.until_final()
        assert stream.end() == []
        assert control.end() == []
    assert [reply.error for reply in replies] == [""] * len(replies)
    assert [reply.final for reply in replies].count(True) == 1
    assert ending(replies) == "cancelled"
    assert "finish_reason" in replies[-1].outputs
    assert replies[-1].ids() == []
    count = replies[-1].one("completion_tokens")
    assert 1 <= count < 2000
    if streaming:
        assert joined_text(replies) == decode(echo_of(TEXT_IDS, count))


def test_stop_request_without_a_target(scripted: Server) -> None:
    stop = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
    [unknown] = ask(scripted.grpc, "llm", stop, request_id="nobody")
    assert (unknown.outputs, unknown.error) == ({}, "")
    with pytest.raises(grpc.RpcError) as caught:
        infer(scripted.grpc, "unary", stop)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Trying to stop a request but request ID is not provided"
