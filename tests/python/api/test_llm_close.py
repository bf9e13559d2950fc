# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""close() ends what other threads wait for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from slipstream import _core
from slipstream.api import LLM, SamplingParams
from slipstream.api import llm as llm_module
from slipstream.errors import UnavailableError

ENDLESS = SamplingParams(max_tokens=100_000, ignore_eos=True)
SCRIPT = json.dumps(
    {"emit": "echo", "vocab_size": 100, "max_seq_len": 200_000, "num_blocks": 8192, "step_us": 100}
)


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every LLM here has a scripted worker."""

    def start(config: Any, *arguments: Any) -> Any:
        return _core.Executor.start_scripted(config, SCRIPT)

    replaced = SimpleNamespace(
        ExecutorConfig=_core.ExecutorConfig,
        SchedulerPolicy=_core.SchedulerPolicy,
        Executor=SimpleNamespace(start_process=start),
    )
    monkeypatch.setattr(llm_module, "_core", replaced)


def generate(llm: LLM) -> str:
    prompts, params = [[1, 2, 3], [4, 5]], [SamplingParams(max_tokens=3), ENDLESS]
    return llm.generate(prompts, params)[1].completions[0].finish_reason


def stream(llm: LLM) -> str:
    return [chunk.finish_reason for chunk in llm.stream([1, 2, 3], ENDLESS)][-1]


class Call(threading.Thread):
    """A call in a thread of its own, and how it ended."""

    def __init__(self, call: Callable[[LLM], str], llm: LLM) -> None:
        super().__init__(daemon=True)
        self.ending: str | BaseException = ""
        self._call, self._llm = call, llm
        self.start()

    def run(self) -> None:
        try:
            self.ending = self._call(self._llm)
        except BaseException as error:
            self.ending = error

    def check_end(self) -> None:
        self.join(20)
        assert not self.is_alive(), "it waits for a model that is closed"
        refused = isinstance(self.ending, UnavailableError)
        assert refused or self.ending == "cancelled", self.ending


@pytest.mark.parametrize("call", [generate, stream])
def test_running_calls_end(call: Callable[[LLM], str]) -> None:
    for turn in range(40):
        llm = LLM("scripted")
        calls = [Call(call, llm) for _ in range(4)]
        time.sleep(0.0002 * (turn % 20))  # at another moment of theirs each time
        llm.close()
        for running in calls:
            running.check_end()
        assert not llm._queues


@pytest.mark.parametrize("call", [generate, stream])
def test_the_last_events_are_delivered(call: Callable[[LLM], str]) -> None:
    """Also those that come while earlier ones are handed out."""
    llm = LLM("scripted")
    real = llm._executor
    ours, begun = threading.Event(), threading.Event()

    def wait_events(timeout_s: float) -> Any:
        ours.set()
        events = real.wait_events(timeout_s)
        if events:
            begun.set()
            llm._closed.wait(20)
        return events

    llm._executor = SimpleNamespace(
        wait_events=wait_events,
        submit_all=real.submit_all,
        cancel=real.cancel,
        shutdown=real.shutdown,
        has_text=real.has_text,
        worker_info=real.worker_info,
    )
    assert ours.wait(20)
    running = Call(call, llm)
    assert begun.wait(20)
    llm.close()
    running.check_end()
    assert running.ending == "cancelled"
