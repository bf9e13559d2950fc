# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker's conversation with its executor: configuration, greeting, then step by step."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

from slipstream.link import FrameType
from slipstream.worker.channel import Channel, Frame, PeerGone
from slipstream.worker.config import WorkerConfig
from slipstream.worker.frames import FrameError, encode_result, parse_step

if TYPE_CHECKING:  # torch takes a second to import
    from slipstream.worker.engine import ModelRunner, PendingStep
    from slipstream.worker.expert_report import ExpertReport


def serve(channel: Channel) -> int:
    """Answers one executor until it says SHUTDOWN or is gone; returns the process's exit code.

    Any exception is sent as an ERROR frame, with its traceback, and ends the worker with code 1.
    """
    try:
        return _converse(channel)
    except PeerGone:
        return 0  # the executor: there is nobody to tell
    except Exception as error:  # whatever it was, the executor must learn of it
        _report(channel, error)
        return 1


def _converse(channel: Channel) -> int:
    frame = channel.receive()
    if _is_end(frame):
        return 0
    config = WorkerConfig.from_map(_expect(frame, FrameType.CONFIG).map())
    # torch takes a second to import: a bad configuration or an early end should not wait for it.
    from slipstream.worker.expert_report import ExpertReport
    from slipstream.worker.startup import load_model

    def progress(fraction: float, what: str) -> None:
        channel.send_map(FrameType.PROGRESS, {"fraction": fraction, "what": what})

    loaded = load_model(config, progress)
    channel.send_map(FrameType.HELLO, loaded.hello)
    load = loaded.runner.expert_load
    run_steps(channel, loaded.runner, ExpertReport(load) if load is not None else None)
    return 0


def run_steps(channel: Channel, runner: ModelRunner, report: ExpertReport | None) -> None:
    """Launches steps as they come and answers each as soon as it is done, in their order."""
    pending: deque[PendingStep] = deque()
    while True:
        # While a step runs both are looked at in turn, without sleeping: a step takes as long as
        # a few hundred looks, and whatever is noticed late keeps a GPU idle.
        if pending and pending[0].done():
            channel.send(FrameType.RESULT, encode_result(pending.popleft().result()))
            if report is not None:
                report.note_step()
        elif not pending or channel.wait(0):
            frame = _next_frame(channel, report)
            if _is_end(frame):
                return
            plan = parse_step(_expect(frame, FrameType.STEP).payload)
            pending.append(runner.launch(plan))


def _next_frame(channel: Channel, report: ExpertReport | None) -> Frame | None:
    """Waits for the next frame, and tells meanwhile what experts computed when that is due."""
    if report is None:
        return channel.receive()
    while True:
        now = time.monotonic()
        if (tokens := report.take(now)) is not None:
            channel.send_map(FrameType.STATS, {"expert_tokens": tokens})
        due_in = report.due_in(now)
        if due_in is None or channel.wait(due_in):
            return channel.receive()


def _is_end(frame: Frame | None) -> bool:
    return frame is None or frame.type is FrameType.SHUTDOWN


def _expect(frame: Frame | None, frame_type: FrameType) -> Frame:
    if frame is None or frame.type is not frame_type:
        found = "end of file" if frame is None else frame.type.name
        raise FrameError(f"expected a {frame_type.name} frame, got {found}")
    return frame


def _report(channel: Channel, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    message = str(error) or type(error).__name__  # MemoryError has no words of its own
    with contextlib.suppress(OSError, PeerGone):  # the executor may be gone as well
        channel.send_map(FrameType.ERROR, {"message": message, "traceback": text})
