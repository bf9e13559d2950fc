# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a server holds, sampled every second while it is under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path

import psutil
from e2e_server import Server

PERIOD_S = 1.0


@dataclass(frozen=True)
class Sample:
    """Bytes, counts, and what /metrics says of one model; `at` in seconds from the load's start."""

    at: float
    answers: int
    server_rss: int
    children_rss: int  # workers and tokenizers
    descriptors: int
    threads: int
    shm: int
    kv_used: float
    kv_cached: float
    kv_free: float
    running: float
    waiting: float


def take(server: Server, model: str, at: float, answers: int) -> Sample:
    """One sample."""
    process = psutil.Process(server.process.pid)
    rss = 0
    for child in process.children(recursive=True):
        try:
            rss += child.memory_info().rss
        except psutil.NoSuchProcess:  # a worker that was killed just now
            continue
    metrics = server.metrics()
    kv = [
        metrics.value("slipstream_kv_tokens", model=model, state=state)
        for state in ("used", "cached", "free")
    ]
    return Sample(
        at,
        answers,
        process.memory_info().rss,
        rss,
        process.num_fds(),
        process.num_threads(),
        shared_bytes(),
        *kv,
        metrics.value("slipstream_running", model=model),
        metrics.value("slipstream_waiting", model=model),
    )


def shared_bytes() -> int:
    """What lies in /dev/shm, of any process."""
    total = 0
    for path in Path("/dev/shm").iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


class Sampler(threading.Thread):
    """Samples until it is stopped."""

    def __init__(self, server: Server, model: str, answers: Sized, zero: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._server, self._model, self._answers, self._zero = server, model, answers, zero
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            at = time.monotonic() - self._zero
            self.samples.append(take(self._server, self._model, at, len(self._answers)))

    def stop(self) -> list[Sample]:
        self._ended.set()
        self.join(30)
        return self.samples
