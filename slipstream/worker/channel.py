# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames over a stream socket."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from slipstream.link import FrameType
from slipstream.worker.frames import (
    FRAME_HEADER,
    FrameError,
    encode_frame_header,
    parse_frame_header,
)

_HEADER_BYTES = FRAME_HEADER.itemsize
_MAX_BUFFERS = min(os.sysconf("SC_IOV_MAX"), 1024)


@dataclass(frozen=True, slots=True)
class Frame:
    """A received frame. ``payload`` is overwritten by the next :meth:`Channel.receive`."""

    type: FrameType
    payload: npt.NDArray[np.uint8]

    def map(self) -> dict[str, Any]:
        """The payload of a msgpack frame. Raises FrameError when it is not one map."""
        try:
            value = msgpack.unpackb(self.payload.tobytes(), strict_map_key=True)
        except (ValueError, msgpack.UnpackException) as error:
            raise FrameError(f"{self.type.name} payload is not msgpack: {error}") from error
        if not isinstance(value, dict):
            raise FrameError(f"{self.type.name} payload is {type(value).__name__}, expected a map")
        return value


class PeerGone(EOFError):
    """The other end of the socket is closed, and not between two frames."""


class Channel:
    """Reads and writes frames. Owns the socket; used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        # uint64 elements and a header of 16 bytes, so that payloads start at a multiple of eight.
        self._buffer = np.empty(8192, np.uint64)
        self._begin = 0  # of what was received and not handed out: [begin, end) of the buffer
        self._end = 0

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Takes over an inherited, connected stream socket. Raises OSError if it is not one."""
        return cls(socket.socket(fileno=fd))

    def close(self) -> None:
        self._sock.close()

    def receive(self) -> Frame | None:
        """Waits for the next frame; None at end of file between two frames.

        Raises FrameError for malformed bytes and PeerGone when the peer ends inside a frame.
        """
        self._to_front()
        if not self._fill(_HEADER_BYTES):
            return None
        frame_type, size = parse_frame_header(self._buffer.data)
        end = _HEADER_BYTES + size
        if end > self._buffer.nbytes:
            larger = np.empty((end + end // 2 + 7) // 8, np.uint64)
            larger[: self._buffer.size] = self._buffer
            self._buffer = larger
        self._fill(end)
        self._begin = end
        return Frame(frame_type, self._buffer.view(np.uint8)[_HEADER_BYTES:end])

    def wait(self, timeout_s: float) -> bool:
        """Whether ``receive`` has something to begin with, be it the end, within the time."""
        return self._end > self._begin or bool(self._poll.poll(timeout_s * 1e3))

    def send_map(self, frame_type: FrameType, values: Mapping[str, Any]) -> None:
        self.send(frame_type, [memoryview(msgpack.packb(dict(values)))])

    def send(self, frame_type: FrameType, buffers: list[memoryview]) -> None:
        """Sends one frame whose payload is the buffers joined; waits until all is sent.

        Raises PeerGone when nobody will read it.
        """
        size = sum(buffer.nbytes for buffer in buffers)
        pending = [memoryview(encode_frame_header(frame_type, size)), *buffers]
        pending = [buffer for buffer in pending if buffer.nbytes]
        while pending:
            try:
                sent = self._sock.sendmsg(pending[:_MAX_BUFFERS])
            except (BrokenPipeError, ConnectionResetError) as error:
                raise PeerGone("the peer closed the connection") from error
            done = 0
            while done < len(pending) and sent >= pending[done].nbytes:
                sent -= pending[done].nbytes
                done += 1
            del pending[:done]
            if sent:
                pending[0] = pending[0][sent:]

    def _to_front(self) -> None:
        # Usually nothing is left: a frame is received with its header in one call.
        left = self._end - self._begin
        if left:
            data = self._buffer.view(np.uint8)
            data[:left] = data[self._begin : self._end].copy()
        self._begin, self._end = 0, left

    def _fill(self, end: int) -> bool:
        """Receives until ``end`` bytes are there, and what has come with them."""
        while self._end < end:
            try:
                count = self._sock.recv_into(self._buffer.view(np.uint8)[self._end :].data)
            except ConnectionResetError as error:
                raise PeerGone("the peer closed the connection") from error
            if count == 0:
                if self._end == 0:
                    return False
                raise PeerGone("the peer closed the connection inside a frame")
            self._end += count
        return True
