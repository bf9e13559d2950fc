# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames: sizes, round trips, zero copies, and what malformed bytes raise."""

from __future__ import annotations

import socket
import threading

import msgpack
import numpy as np
import pytest
from worker_testing import PlanBuilder, encode_step, parse_result

from slipstream.worker import frames
from slipstream.worker.channel import Channel
from slipstream.worker.frames import FrameError, FrameType, SeqFlag, StepResult


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def plan_with_everything():
    plan = PlanBuilder(step_id=1 << 40).retire(9).copy(3, 4, 2)
    plan.admit(7, history=[1, 2, 3], seed=(1 << 64) - 1, prompt_len=3, bias=[(5, -2.5)])
    plan.seq(7, [1, 2, 3], 0, [10, 11], SeqFlag.CONTEXT_LOGITS | SeqFlag.SAMPLE)
    plan.seq(2, [-1], 40, [], SeqFlag.SAMPLE)
    return plan.build()


def payload_of(plan) -> np.ndarray:
    data = b"".join(encode_step(plan))
    words = np.zeros(len(data) // 8 + 1, np.uint64)
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return words.view(np.uint8)[: len(data)]


def test_sizes_are_those_of_the_header_file():
    assert frames.FRAME_HEADER.itemsize == 16
    assert frames.STEP_HEADER.itemsize == 40
    assert frames.RESULT_HEADER.itemsize == 48
    assert frames.ADMIT_RECORD.itemsize == 104
    assert frames.BLOCK_COPY.itemsize == 16


def test_step_round_trip_without_copies():
    plan = plan_with_everything()
    payload = payload_of(plan)
    parsed = frames.parse_step(payload)
    assert parsed.step_id == 1 << 40
    for name, dtype, _ in frames.STEP_ARRAYS:
        array = getattr(parsed, name)
        assert array.dtype == dtype
        assert array.tobytes() == getattr(plan, name).tobytes()
        assert array.size == 0 or np.shares_memory(array, payload)
        assert array.size == 0 or array.__array_interface__["data"][0] % 8 == 0


def test_step_with_nothing():
    parsed = frames.parse_step(payload_of(PlanBuilder(3).build()))
    assert (parsed.step_id, parsed.slot.size, parsed.aux.size) == (3, 0, 0)


def test_short_and_long_steps_are_refused():
    payload = payload_of(plan_with_everything())
    with pytest.raises(FrameError, match="STEP payload of 39 bytes is shorter than its header"):
        frames.parse_step(payload[:39])
    with pytest.raises(FrameError, match=r"STEP payload of \d+ bytes ends inside aux"):
        frames.parse_step(payload[:-4])
    longer = np.concatenate([payload, np.zeros(16, np.uint8)])
    with pytest.raises(FrameError, match=r"its arrays end at \d+"):
        frames.parse_step(longer)


def test_result_round_trip():
    u32 = lambda *values: np.array(values, np.uint32)  # noqa: E731
    result = StepResult(
        step_id=5,
        start_ns=6,
        end_ns=7,
        slot=u32(1, 2, 3),
        status=u32(0, 1, 0),
        num_tokens=u32(1, 0, 1),
        logprob_width=u32(2, 0, 1),
        context_rows=u32(0, 0, 1),
        generation_rows=u32(0, 0, 0),
        tokens=np.array([11, 12], np.int32),
        logprob_ids=np.array([11, 4, 12], np.int32),
        logprob_values=np.array([-0.5, -0.25, -2.0], np.float32),
        logits=np.arange(5, dtype=np.float32),
    )
    data = np.frombuffer(b"".join(frames.encode_result(result)), np.uint8)
    back = parse_result(data)
    assert (back.step_id, back.start_ns, back.end_ns) == (5, 6, 7)
    for name, _, _ in frames.RESULT_ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))


def test_channel_round_trip_of_a_large_frame(pair):
    """Larger than the socket's buffer, in more buffers than one call takes."""
    channel, theirs = pair
    reader = Channel(theirs.dup())
    parts = [np.full(1500, i % 251, np.uint8) for i in range(3000)]
    sender = threading.Thread(
        target=channel.send, args=(FrameType.RESULT, [memoryview(part) for part in parts])
    )
    sender.start()
    frame = reader.receive()
    sender.join()
    assert frame is not None
    assert frame.type is FrameType.RESULT
    np.testing.assert_array_equal(frame.payload, np.concatenate(parts))
    reader.close()


def test_channel_maps_and_end_of_file(pair):
    channel, theirs = pair
    body = msgpack.packb({"fraction": 0.5, "what": "x"})
    theirs.sendall(frames.encode_frame_header(FrameType.PROGRESS, len(body)) + body)
    frame = channel.receive()
    assert frame is not None
    assert frame.map() == {"fraction": 0.5, "what": "x"}
    theirs.shutdown(socket.SHUT_WR)
    assert channel.receive() is None


def test_end_of_file_inside_a_frame(pair):
    channel, theirs = pair
    theirs.sendall(frames.encode_frame_header(FrameType.STEP, 100) + b"x" * 99)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError, match="inside a frame"):
        channel.receive()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("magic", 7, "frame magic is 0x7, expected 0x4d525453"),
        ("version", 2, "frame version is 2, this side speaks 3"),
        ("type", 11, "frame type 11 is unknown"),
        ("payload_bytes", (1 << 33) + 1, "frame payload of 8589934593 bytes exceeds 8589934592"),
    ],
)
def test_bad_headers(pair, field, value, message):
    channel, theirs = pair
    header = np.frombuffer(frames.encode_frame_header(FrameType.STEP, 0), frames.FRAME_HEADER)
    header = header.copy()
    header[field] = value
    theirs.sendall(header.tobytes())
    with pytest.raises(FrameError, match=message):
        channel.receive()


@pytest.mark.parametrize("body", [b"\xc1", msgpack.packb([1])])
def test_payloads_that_are_no_map(pair, body):
    channel, theirs = pair
    theirs.sendall(frames.encode_frame_header(FrameType.CONFIG, len(body)) + body)
    frame = channel.receive()
    assert frame is not None
    with pytest.raises(FrameError, match="CONFIG payload is"):
        frame.map()
