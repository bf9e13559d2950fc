# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Readiness: true exactly as long as a request that is sent now gets its tokens."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from e2e_client import Stream, ask, generate, infer, joined_ids, load, prompt, question
from e2e_metrics import wait_for
from e2e_recipes import (
    MORTAL,
    MORTAL_DEMO,
    MORTAL_EXITING,
    MORTAL_PAIR,
    MORTAL_STAYING,
    MORTAL_UNCONTROLLED,
)
from e2e_server import Server, ServerPool

DEADLY = prompt([5, 6], 30, streaming=True)  # more steps than a mortal model makes
SERVING = ("llm", "ensemble", "steps")
GAVE_UP = "(gave up after max_restarts = 0)"


def is_dead(server: Server) -> bool:
    """Not ready: what needs the dead model, and the server; withdrawn to the end, with a reason."""
    if server.process.is_ready() or any(map(server.is_ready, SERVING)):
        return False
    return all("was withdrawn" in server.state_of(model)[1] for model in ("llm", "ensemble"))


def bring_back(server: Server) -> None:
    load(server.grpc, "llm")
    assert server.is_ready("llm")
    assert server.is_ready("steps"), "Triton loads an ensemble along with its steps"
    load(server.grpc, "ensemble")
    assert server.process.is_ready(SERVING)


def test_a_worker_that_is_restarted_serves_what_was_sent_meanwhile(demo: Server) -> None:
    def is_up() -> bool:
        return demo.metrics().value("slipstream_ready", model="llm") == 1

    fields = question("Once upon a time", 20, stream=True, end_id=-1)
    undisturbed = [reply.text() for reply in ask(demo.grpc, "ensemble", fields)]
    demo.workers()[0].kill()
    wait_for(lambda: not is_up(), 5, "the death is seen")
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(ask, demo.grpc, "ensemble", fields)
        while not sent.done():
            assert demo.process.is_ready(SERVING)
        assert "".join(r.text() for r in sent.result()) == "".join(undisturbed)
    wait_for(is_up, 5, "the worker is back")


def tokenizers(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "slipstream.tokenizer" in child.cmdline()]


@pytest.mark.parametrize("model", ["ensemble", "steps"])
def test_a_killed_tokenizer_process_costs_time_only(demo: Server, model: str) -> None:
    """It is started again by the request that needs it, or that saw it die."""
    asked = question("hello", 3)
    expected = ask(demo.grpc, model, asked)[0].text()
    running = tokenizers(demo)
    for process in running:
        process.kill()
    psutil.wait_procs(running, timeout=5)
    assert demo.is_ready(model)
    assert ask(demo.grpc, model, asked)[0].text() == expected
    running = tokenizers(demo)
    assert running
    for process in running:
        process.suspend()
    with Stream(demo.grpc) as stream:
        stream.send(model, asked)
        tokenizing = "preprocessing" if model == "steps" else model
        wait_for(
            lambda: demo.metrics().value("slipstream_tokenizing", model=tokenizing) == 1,
            5,
            "the request is with it",
        )
        for process in running:
            process.kill()
        assert stream.until_final()[0].text() == expected


def test_a_killed_worker_that_is_not_restarted(servers: ServerPool) -> None:
    with servers.own(MORTAL_DEMO) as server:
        fields = question("Once upon a time", 20, end_id=-1)
        [before] = ask(server.grpc, "ensemble", fields)
        server.workers()[0].kill()
        wait_for(lambda: is_dead(server), 5, "nothing is ready that cannot serve")
        assert server.is_ready("preprocessing")
        for model in ("llm", "ensemble"):
            state, reason = server.state_of(model)
            assert state == "UNAVAILABLE"
            assert f"model {model} was withdrawn: the worker failed: " in reason
            assert f"the worker died: killed by signal 9 (Killed) {GAVE_UP}" in reason
        bring_back(server)
        [after] = ask(server.grpc, "ensemble", fields)
        assert (after.text(), after.error) == (before.text(), "")
        assert len(server.workers()) == 1


@pytest.mark.parametrize(
    "deaths", [8, pytest.param(800, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_model_that_dies_under_a_stream(servers: ServerPool, deaths: int) -> None:
    with servers.own(MORTAL) as server:
        for _ in range(deaths):
            with Stream(server.grpc) as stream:  # keeps the old model alive
                assert "scripted failure at step 4" in stream.ask("llm", DEADLY)[-1].error
                wait_for(lambda: is_dead(server), 5, "nothing is ready that cannot serve")
                with pytest.raises(grpc.RpcError) as caught:
                    infer(server.grpc, "steps", question("hello", 3))
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
                status, answer = generate(server.http, "ensemble", question("hello", 3))
                assert (status, answer["error"]) == (
                    404,
                    "Request for unknown model: 'ensemble' has no available versions",
                )
            bring_back(server)
            assert joined_ids(ask(server.grpc, "llm", prompt([5, 6], 2, streaming=True))) == [5, 6]
        ask(server.grpc, "llm", DEADLY)
        start = time.monotonic()
        assert server.stop() == 0, "while it is being withdrawn"
        assert time.monotonic() - start < 10


def test_loading(servers: ServerPool) -> None:
    """A fused ensemble that is loaded along with its model waits for it."""
    with servers.own(MORTAL) as server, ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(load, server.grpc, name) for name in ("late_ensemble", "late")]
        start = time.monotonic()
        wait_for(lambda: server.is_ready("late_ensemble"), 20, "it is loaded")
        assert time.monotonic() - start > 1.4, "as long as the worker loads"
        assert not ask(server.grpc, "late_ensemble", question("hello", 2))[-1].error
        for future in loading:
            future.result()
        assert server.process.is_ready(("late",))


def wait_until_it_is_said_that_llm_stays(server: Server) -> None:
    wait_for(lambda: server.metrics().value("slipstream_ready", model="llm") == 0, 5, "it is dead")
    wait_for(lambda: "llm stays ready" in "".join(server.process.tail(2000)), 5, "it is said")


def test_without_model_control_the_server_ends_with_its_model(servers: ServerPool) -> None:
    with servers.own(MORTAL_UNCONTROLLED) as server:
        streams = [Stream(server.grpc) for _ in range(8)]
        for stream in streams:
            stream.send("llm", DEADLY)
        start = time.monotonic()
        for stream in streams:
            assert "the worker failed: " in stream.until_final()[-1].error
        assert server.process.wait() == 70
        assert time.monotonic() - start < 30
        log = "\n".join(server.process.tail(2000))
        assert "is dead and the server cannot be told" in log
        assert "exiting with code 70" in log
        for stream in streams:
            stream.cancel()


def test_it_does_not_end_with_one_of_two_models(servers: ServerPool) -> None:
    with servers.own(MORTAL_PAIR) as server:
        ask(server.grpc, "llm", DEADLY)
        wait_until_it_is_said_that_llm_stays(server)
        for _ in range(6):
            served = ask(server.grpc, "other", prompt([5, 6], 2, streaming=True))
            assert joined_ids(served) == [5, 6]
            assert GAVE_UP in ask(server.grpc, "llm", DEADLY)[-1].error
            time.sleep(0.3)  # in all longer than an exit takes
        stream = Stream(server.grpc)
        last = stream.ask("other", prompt([5, 6], 100, streaming=True))
        assert "scripted failure at step 60" in last[-1].error
        assert server.process.wait() == 70
        stream.cancel()


def test_without_exit_only_the_gauge_tells(servers: ServerPool) -> None:
    with servers.own(MORTAL_STAYING) as server:
        ask(server.grpc, "llm", DEADLY)
        wait_until_it_is_said_that_llm_stays(server)
        refused = "stays ready for the server: explicit model load / unload is not allowed"
        for model in SERVING:
            assert server.is_ready(model)
            [reply] = ask(server.grpc, model, DEADLY if model == "llm" else question("hello", 3))
            assert GAVE_UP in reply.error
        log = "\n".join(server.process.tail(2000))
        assert log.count(f"model llm {refused}") == 1
        assert server.stop() == 0


def test_exit_on_fatal_ends_the_server(servers: ServerPool) -> None:
    with servers.own(MORTAL_EXITING) as server:
        start = time.monotonic()
        stream = Stream(server.grpc)
        assert "scripted failure at step 4" in stream.ask("llm", DEADLY)[-1].error
        assert server.process.wait() == 70
        assert time.monotonic() - start < 5
        stream.cancel()
