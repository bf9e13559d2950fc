# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""More requests than a server can serve, at a rate that does not wait for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from e2e_client import TIMEOUT_S, Reply, Stream
from e2e_server import Server


class Flood:
    """Requests at a fixed rate over streams of their own, each answer noted with its time.

    Where the block that it is used in fails, it is abandoned.
    """

    def __init__(
        self, server: Server, model: str, rate: float, fields: dict[str, Any], seconds: float = 30
    ) -> None:
        """So many requests a second, for at most so many seconds."""
        self.sent: dict[str, float] = {}
        self.answers: dict[str, list[tuple[float, Reply]]] = {}
        self._model, self._rate, self._fields = model, rate, fields
        self._streams = [Stream(server.grpc, seconds + TIMEOUT_S) for _ in range(4)]
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(5)
        self._readers = [self._pool.submit(self._read, stream) for stream in self._streams]
        self._sender = self._pool.submit(self._send)

    def __enter__(self) -> Flood:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._ended.set()
            for stream in self._streams:
                stream.cancel()
        self._pool.shutdown(wait=error is None)

    def _send(self) -> None:
        start, number = time.monotonic(), 0
        while not self._ended.is_set():
            number += 1
            time.sleep(max(0, start + number / self._rate - time.monotonic()))
            self.sent[str(number)] = time.monotonic()
            self._streams[number % 4].send(self._model, self._fields, str(number))
        for stream in self._streams:
            stream.close_sending()

    def _read(self, stream: Stream) -> None:
        for reply in stream.rest():
            self.answers.setdefault(reply.id, []).append((time.monotonic(), reply))

    def stop(self) -> None:
        """Sends no more and waits for every answer."""
        self._ended.set()
        self._sender.result()
        for reader in self._readers:
            reader.result(60)

    def num_served(self) -> int:
        return sum(not replies[-1][1].error for replies in list(self.answers.values()))

    def seconds(self, refused: bool) -> np.ndarray:
        """From sending to the answer."""
        found = [
            replies[-1][0] - self.sent[name]
            for name, replies in self.answers.items()
            if bool(replies[-1][1].error) == refused
        ]
        return np.array(found)
