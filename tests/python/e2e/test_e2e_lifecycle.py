# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Starting, draining, unloading and failing, as clients and operators see it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import numpy as np
import psutil
import pytest
from e2e_client import (
    Reply,
    Stream,
    ask,
    ending,
    generate,
    generate_stream,
    joined_ids,
    joined_text,
    load,
    prompt,
    question,
    unload,
)
from e2e_metrics import wait_for
from e2e_recipes import DRAINED, DRAINED_SHORTLY
from e2e_server import Server, ServerPool, decode, tokenizer

TEXT = "Once upon a time there was a fox"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]
COUNT = 80


def echo(count: int) -> list[int]:
    return [TEXT_IDS[i % len(TEXT_IDS)] for i in range(count)]


def test_sigterm_drains(servers: ServerPool) -> None:
    """Streams of `llm` and of the fused ensemble finish.

    Two things this server does itself: it stops the later steps of an ensemble at once, and it
    keeps a model as long as a client keeps the gRPC stream open that it was used on.
    """
    with servers.own(DRAINED) as server, ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.grpc)) for _ in range(8)]
        for stream in streams[:4]:
            stream.send("llm", prompt(TEXT_IDS, COUNT, streaming=True, return_finish_reason=True))
        for stream in streams[4:]:
            stream.send("ensemble", question(TEXT, COUNT, stream=True, return_finish_reason=True))
        early = [[stream.next() for _ in range(3)] for stream in streams]
        server.process.terminate()
        wait_for(lambda: not server.process.is_ready(), 5, "the server is not ready any more")
        for number, (stream, replies) in enumerate(zip(streams, early, strict=True)):
            replies += stream.until_final()
            assert {reply.error for reply in replies} == {""}
            assert ending(replies) == "length"
            if number < 4:
                assert joined_ids(replies) == echo(COUNT)
            else:
                assert joined_text(replies) == decode(echo(COUNT))
            assert stream.end() == []
        assert server.process.wait() == 0


def test_streams_that_outlive_the_drain_end_with_an_error(servers: ServerPool) -> None:
    """Within drain_timeout_ms of SIGTERM, long before the server would cut them off."""
    with servers.own(DRAINED_SHORTLY) as server, ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.grpc)) for _ in range(6)]
        for stream in streams[:3]:
            stream.send("llm", prompt(TEXT_IDS, 3000, streaming=True, return_finish_reason=True))
        for stream in streams[3:]:
            stream.send("ensemble", question(TEXT, 3000, stream=True, return_finish_reason=True))
        early = [stream.next() for stream in streams]
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.terminate()
        for stream, first in zip(streams, early, strict=True):
            replies = [first, *stream.until_final()]
            assert replies[-1].error == "shutting down"
            assert {reply.error for reply in replies[:-1]} == {""}
            assert all("finish_reason" not in reply.outputs for reply in replies)
            assert stream.end() == []
        assert server.process.wait() == 0
        assert not any(child.is_running() for child in children)


def assert_served_to_the_end(server: Server, stream: Stream, replies: list[Reply]) -> None:
    """The rest of a stream of COUNT tokens, after ``replies``, and then the server ends with 0."""
    replies += stream.until_final()
    assert {reply.error for reply in replies} == {""}
    assert joined_ids(replies) == echo(COUNT)
    assert stream.end() == []
    assert server.process.wait() == 0


def test_a_second_sigterm_changes_nothing(servers: ServerPool) -> None:
    with servers.own(DRAINED) as server, Stream(server.grpc) as stream:
        stream.send("llm", prompt(TEXT_IDS, COUNT, streaming=True))
        replies = [stream.next()]
        server.process.terminate()
        wait_for(lambda: not server.process.is_ready(), 5, "the first one was seen")
        server.process.terminate()
        assert_served_to_the_end(server, stream, replies)


def test_sigterm_while_a_model_loads(servers: ServerPool) -> None:
    """The stream of another model finishes, the load ends, and the server with it."""
    with (
        servers.own(DRAINED) as server,
        ThreadPoolExecutor(1) as pool,
        Stream(server.grpc) as stream,
    ):
        stream.send("llm", prompt(TEXT_IDS, COUNT, streaming=True))
        replies = [stream.next()]
        loading = pool.submit(load, server.grpc, "late")
        wait_for(lambda: server.state_of("late")[0] == "LOADING", 2, "it loads")
        start = time.monotonic()
        server.process.terminate()
        assert_served_to_the_end(server, stream, replies)
        assert time.monotonic() - start < 10
        loading.exception(10)


def test_draining_first_lets_streams_through_steps_finish(servers: ServerPool) -> None:
    """What Ctrl-C on `slipstream serve` does, since SIGTERM alone would cut them off."""
    with servers.own(DRAINED) as server, ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.grpc)) for _ in range(4)]
        for stream in streams:
            stream.send("steps", question(TEXT, COUNT, stream=True, return_finish_reason=True))
        early = [[stream.next()] for stream in streams]
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(server.process.drain)
            for stream, replies in zip(streams, early, strict=True):
                replies += stream.until_final()
                assert {reply.error for reply in replies} == {""}
                assert ending(replies) == "length"
                assert stream.end() == []
            draining.result(timeout=30)
        assert server.process.wait() == 0


def test_failed_streams_of_an_ensemble_do_not_hold_up_the_end(servers: ServerPool) -> None:
    """This server must be handed errors of steps with care: see Delivery::HoldErrors."""
    with servers.own(DRAINED) as server:

        def expire(index: int) -> str:
            model = "steps" if index % 2 else "ensemble"
            fields = question(f"{TEXT} {index}", COUNT, stream=True, timeout_ms=150 + 5 * index)
            return ask(server.grpc, model, fields)[-1].error

        with ThreadPoolExecutor(16) as pool:
            errors = set(pool.map(expire, range(32)))
        passed = "the request's deadline (timeout) passed"
        assert errors == {passed, f"in ensemble 'steps', {passed}"}
        for model in ("ensemble", "steps"):
            for _ in range(3):
                stream = Stream(server.grpc)
                stream.send(model, question(TEXT, 3000, stream=True))
                assert not stream.next().error
                stream.cancel()
            events = generate_stream(server.http, model, question(TEXT, 3000, stream=True))
            assert next(events)
            events.close()  # type: ignore[attr-defined]
        wait_for(
            lambda: server.metrics().value("slipstream_running", model="llm") == 0,
            5,
            "all cancelled requests end",
        )
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait() == 0
        assert time.monotonic() - start < 10


def test_unload_drains(scripted: Server) -> None:
    load(scripted.grpc, "leaving")
    load(scripted.grpc, "leaving_ensemble")
    load(scripted.grpc, "leaving_steps")
    with ExitStack() as stack:
        direct, fused, piped = (stack.enter_context(Stream(scripted.grpc)) for _ in range(3))
        direct.send("leaving", prompt(TEXT_IDS, COUNT, streaming=True))
        fused.send("leaving_ensemble", question(TEXT, COUNT, stream=True))
        piped.send("leaving_steps", question(TEXT, COUNT, stream=True))
        early = [direct.next()], [fused.next()], [piped.next()]
        unload(scripted.grpc, "leaving_ensemble")
        unload(scripted.grpc, "leaving_steps")
        unload(scripted.grpc, "leaving")
        wait_for(lambda: not scripted.is_ready("leaving"), 5, "it is not ready any more")
        [refused] = ask(scripted.grpc, "leaving", prompt(TEXT_IDS, 3))
        assert "leaving" in refused.error
        replies = early[0] + direct.until_final()
        assert {reply.error for reply in replies} == {""}
        assert joined_ids(replies) == echo(COUNT)
        for first, stream in ((early[1], fused), (early[2], piped)):
            replies = first + stream.until_final()
            assert {reply.error for reply in replies} == {""}
            assert joined_text(replies) == decode(echo(COUNT))
    wait_for(lambda: scripted.state_of("leaving")[0] == "UNAVAILABLE", 10, "it is unloaded")
    assert "leaving" not in {
        dict(labels).get("model")
        for name, labels in scripted.metrics().samples
        if name.startswith(("slipstream_", "nv_trt_llm_"))
    }
    assert ask(scripted.grpc, "llm", prompt([9], 2))[0].ids() == [9, 9, 9]


def test_the_fused_ensemble_finds_its_llm_at_each_request(scripted: Server) -> None:
    ensemble, text = "leaving_ensemble", question(TEXT, 3, exclude_input_in_output=True)
    load(scripted.grpc, ensemble)  # before its llm
    for _ in range(2):
        [lost] = ask(scripted.grpc, ensemble, text)
        assert lost.final
        assert lost.error == (
            "parameter llm_model_name: model 'leaving' is not loaded here, or is no model of role "
            "llm"
        )
        load(scripted.grpc, "leaving")
        assert joined_text(ask(scripted.grpc, ensemble, text)) == decode(echo(3))
        with Stream(scripted.grpc) as stream:
            stream.send(ensemble, question(TEXT, COUNT, stream=True))
            replies = [stream.next()]
            unload(scripted.grpc, "leaving")  # under a running stream, which it lets finish
            replies += stream.until_final()
            assert {reply.error for reply in replies} == {""}
            assert joined_text(replies) == decode(echo(COUNT))
        wait_for(lambda: scripted.state_of("leaving")[0] == "UNAVAILABLE", 10, "it is unloaded")
    unload(scripted.grpc, ensemble)
    wait_for(lambda: scripted.state_of(ensemble)[0] == "UNAVAILABLE", 10, "it is unloaded")


def test_a_model_can_be_loaded_again(scripted: Server) -> None:
    for _ in range(2):
        load(scripted.grpc, "leaving")
        assert scripted.is_ready("leaving")
        assert ask(scripted.grpc, "leaving", prompt([9], 2))[0].ids() == [9, 9, 9]
        unload(scripted.grpc, "leaving")
        wait_for(lambda: scripted.state_of("leaving")[0] == "UNAVAILABLE", 10, "it is unloaded")


@pytest.mark.parametrize(
    ("model", "message"),
    [("unstartable", "scripted failure of start 1"), ("broken", "config.json")],
)
def test_a_worker_that_cannot_load_says_why(scripted: Server, model: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(scripted.grpc, model)
    assert message in str(caught.value.details())
    assert message in scripted.state_of(model)[1]
    assert not scripted.is_ready(model)
    assert scripted.is_ready("llm")


def test_names_of_tensorrt_llm(drop_in: Server) -> None:
    """What a client of its backend sends works under its names."""
    fields = {
        "input_ids": np.array([TEXT_IDS], np.int32),
        "input_lengths": np.array([[len(TEXT_IDS)]], np.int32),
        "request_output_len": np.array([[12]], np.int32),
        "beam_width": np.array([[1]], np.int32),
        "len_penalty": np.array([[1.0]], np.float32),
        "repetition_penalty": np.array([[1.0]], np.float32),
        "temperature": np.array([[1.0]], np.float32),
        "runtime_top_k": np.array([[1]], np.int32),
        "end_id": np.array([[2]], np.int32),
        "pad_id": np.array([[2]], np.int32),
        "streaming": np.array([[True]]),
    }
    replies = ask(drop_in.grpc, "tensorrt_llm", fields, request_id="client")
    assert joined_ids(replies) == echo(12)
    body = {"text_input": TEXT, "max_tokens": 12, "bad_words": "", "stop_words": ""}
    status, answer = generate(drop_in.http, "ensemble", body)
    assert (status, answer["text_output"]) == (200, decode(TEXT_IDS + echo(12)))
    metrics = drop_in.metrics()
    assert metrics.value("slipstream_ready", model="tensorrt_llm") == 1
