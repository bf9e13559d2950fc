# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker process over a socketpair, driven as the executor drives it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from worker_testing import PlanBuilder, encode_step, parse_result

from slipstream.demo import demo_model_path
from slipstream.worker import frames
from slipstream.worker.channel import Channel, Frame
from slipstream.worker.frames import FrameType, StepPlan, StepResult
from slipstream.worker.loop import serve

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60


def config_map(path: Path, **overrides: Any) -> dict[str, Any]:
    """A CONFIG map with every key."""
    values = {
        "version": "0.1.0",
        "frame_version": frames.VERSION,
        "model": str(path),
        "tokenizer": "",
        "dtype": "auto",
        "device": "cpu",
        "tokens_per_block": 4,
        "max_num_seqs": 4,
        "max_num_tokens": 64,
        "max_seq_len": 0,
        "kv_cache_bytes": 0,
        "kv_cache_tokens": 256,
        "kv_cache_fraction": 0.5,
        "trust_remote_code": False,
        "load_format": "auto",
        "model_impl": "auto",
        "num_threads": 0,
        "cuda_graphs": True,
        "deterministic": False,
        "seed": 0,
        "revision": None,
        "rank": 0,
        "world_size": 1,
    }
    return {**values, **overrides}


class FakeExecutor:
    """Starts a worker, and speaks the frames of step_frame.h with it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slipstream.worker", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
        theirs.close()
        ours.settimeout(TIMEOUT_S)
        self.socket = ours
        self.channel = Channel(ours)

    def configure(self, path: Path, **overrides: Any) -> None:
        self.channel.send_map(FrameType.CONFIG, config_map(path, **overrides))

    def receive(self) -> Frame:
        frame = self.channel.receive()
        assert frame is not None
        return frame

    def hello(self) -> tuple[dict[str, Any], list[float]]:
        """The greeting and the fractions of the progress frames before it."""
        fractions = []
        while (frame := self.receive()).type is FrameType.PROGRESS:
            fractions.append(frame.map()["fraction"])
        assert frame.type is FrameType.HELLO, frame.map()
        return frame.map(), fractions

    def step(self, plan: StepPlan) -> StepResult:
        self.channel.send(FrameType.STEP, encode_step(plan))
        return self.result()

    def result(self) -> StepResult:
        frame = self.receive()
        assert frame.type is FrameType.RESULT
        return parse_result(frame.payload.copy())


@pytest.fixture
def executor():
    fake = FakeExecutor()
    yield fake
    fake.socket.close()
    fake.process.kill()
    fake.process.wait()


def test_a_whole_conversation(checkpoint, executor):
    reference = checkpoint("gqa")
    executor.configure(reference.path)
    hello, fractions = executor.hello()
    assert hello["vocab_size"] == 211
    assert hello["max_seq_len"] == 2048
    assert hello["tokens_per_block"] == 4
    assert (hello["max_num_seqs"], hello["max_num_tokens"]) == (4, 64)
    assert hello["kv_groups"] == [
        {"kind": "full", "window": 0, "num_blocks": 64, "bytes_per_block": 3 * 2 * 2 * 4 * 16 * 4}
    ]
    assert hello["end_ids"] == [2, 7]
    assert hello["pad_id"] == -1
    assert hello["wants_history"] is False
    assert hello["token_table"] == b""
    assert hello["model_name"] == reference.path.name
    assert hello["device"] == "cpu"
    assert hello["weight_bytes"] == sum(p.nbytes for p in reference.model.parameters())
    assert (hello["expert_layers"], hello["num_experts"]) == ([], 0)
    assert hello["pid"] == executor.process.pid
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    prompt = [5, 6, 7, 8, 9]
    # Two steps in flight: the second takes the first one's token from the slot.
    first = PlanBuilder(1).admit(2, prompt_len=5).seq(2, prompt, 0, [1, 2]).build()
    second = PlanBuilder(2).seq(2, [frames.TOKEN_FROM_SLOT], 5).build()
    executor.channel.send(FrameType.STEP, encode_step(first))
    executor.channel.send(FrameType.STEP, encode_step(second))
    results = [executor.result(), executor.result()]
    assert [result.step_id for result in results] == [1, 2]
    tokens = [int(result.tokens[0]) for result in results]
    assert tokens[0] == int(reference.logits(prompt)[-1].argmax())
    assert tokens[1] == int(reference.logits([*prompt, tokens[0]])[-1].argmax())
    executor.channel.send_map(FrameType.SHUTDOWN, {})
    assert executor.process.wait(TIMEOUT_S) == 0


def test_a_restarted_worker_need_not_read_the_tokenizer(executor):
    executor.configure(demo_model_path(), token_table=False)
    while (frame := executor.receive()).type is FrameType.PROGRESS:
        assert frame.map()["what"] != "reading the tokenizer"
    assert frame.map()["token_table"] == b""


def test_what_experts_computed_is_told_without_being_asked(executor):
    executor.configure(demo_model_path("demo-moe"))
    hello, _ = executor.hello()
    assert (hello["expert_layers"], hello["num_experts"]) == (list(range(6)), 8)
    tokens = [5, 6, 7, 8, 9]
    executor.step(PlanBuilder(1).admit(0, prompt_len=5).seq(0, tokens, 0, [1, 2]).build())
    stats = executor.receive()  # the first is due at once
    assert stats.type is FrameType.STATS
    counts = np.frombuffer(stats.map()["expert_tokens"], "<u8").reshape(6, 8)
    assert counts.sum(1).tolist() == [10] * 5 + [2], "the last layer: only what is sampled from"
    for step in (2, 3):
        executor.step(PlanBuilder(step).seq(0, [frames.TOKEN_FROM_SLOT], 3 + step).build())
    stats = executor.receive()  # when its time has come, although no step arrives
    assert stats.type is FrameType.STATS
    counts = np.frombuffer(stats.map()["expert_tokens"], "<u8").reshape(6, 8)
    assert counts.sum(1).tolist() == [4] * 6


def test_end_of_file_ends_the_worker(checkpoint, executor):
    executor.configure(checkpoint("gqa").path)
    executor.hello()
    executor.socket.close()
    assert executor.process.wait(TIMEOUT_S) == 0


def test_group_signals_leave_the_worker_running(checkpoint, executor):
    executor.configure(checkpoint("gqa").path)
    executor.hello()
    executor.process.send_signal(signal.SIGINT)
    executor.process.send_signal(signal.SIGTERM)
    result = executor.step(PlanBuilder(1).admit(0).seq(0, [5], 0, [0]).build())
    assert result.num_tokens.tolist() == [1]


def test_a_bad_configuration_is_an_error_frame(executor, tmp_path):
    executor.configure(tmp_path, dtipe="float32")
    error = executor.receive()
    assert error.type is FrameType.ERROR
    assert error.map()["message"] == (
        "worker configuration: unknown key 'dtipe', the nearest is 'dtype'"
    )
    assert "Traceback" in error.map()["traceback"]
    assert executor.process.wait(TIMEOUT_S) == 1


def test_a_bad_checkpoint_is_an_error_frame(executor, tmp_path):
    executor.configure(tmp_path)
    while (frame := executor.receive()).type is FrameType.PROGRESS:
        pass
    assert frame.type is FrameType.ERROR
    assert "config.json: [Errno 2]" in frame.map()["message"]
    assert executor.process.wait(TIMEOUT_S) == 1


def test_a_contradicting_plan_is_an_error_frame(checkpoint, executor):
    executor.configure(checkpoint("gqa").path)
    executor.hello()
    executor.channel.send(FrameType.STEP, encode_step(PlanBuilder(9).seq(1, [5], 0).build()))
    error = executor.receive()
    assert error.type is FrameType.ERROR
    assert error.map()["message"] == "step 9 names slots [1], which are not admitted"
    assert executor.process.wait(TIMEOUT_S) == 1


def test_an_unexpected_frame_is_an_error_frame(executor):
    executor.channel.send(FrameType.REPLY, [memoryview(msgpack.packb({}))])
    error = executor.receive()
    assert error.type is FrameType.ERROR
    assert error.map()["message"] == "expected a CONFIG frame, got REPLY"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "MemoryError"),
        (EOFError("Ran out of input"), "Ran out of input"),  # of a file, not of the socket
        (BrokenPipeError("of somebody else"), "of somebody else"),
    ],
)
def test_every_error_is_told(error, message):
    class FailingChannel(Channel):
        def receive(self):
            raise error

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert serve(FailingChannel(theirs)) == 1
        frame = Channel(ours).receive()
    assert frame.type is FrameType.ERROR
    assert frame.map()["message"] == message


def test_the_worker_dies_with_its_parent(checkpoint):
    """We keep the other end of the socket open, so that no end of file tells the worker."""
    ours, theirs = socket.socketpair()
    with ours:
        script = (
            "import subprocess, sys\n"
            f"argv = [sys.executable, '-m', 'slipstream.worker', '--fd', '{theirs.fileno()}']\n"
            f"subprocess.run(argv, pass_fds=[{theirs.fileno()}])\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=[theirs.fileno()], cwd=ROOT
        )
        theirs.close()
        ours.settimeout(TIMEOUT_S)
        channel = Channel(ours)
        channel.send_map(FrameType.CONFIG, config_map(checkpoint("gqa").path))
        while (frame := channel.receive()) is not None and frame.type is FrameType.PROGRESS:
            pass
        assert frame is not None
        assert frame.type is FrameType.HELLO
        parent.kill()
        parent.wait()
        assert channel.receive() is None
