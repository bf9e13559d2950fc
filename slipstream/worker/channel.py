# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames over a stream socket."""

from __future__ import annotations

import os
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


class Channel:
    """Reads and writes frames. Owns the socket; used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._header = bytearray(FRAME_HEADER.itemsize)
        # uint64 elements, so that the payload starts at a multiple of eight.
        self._buffer = np.empty(8192, np.uint64)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Takes over an inherited, connected stream socket. Raises OSError if it is not one."""
        return cls(socket.socket(fileno=fd))

    def close(self) -> None:
        self._sock.close()

    def receive(self) -> Frame | None:
        """Waits for the next frame; None at end of file between two frames.

        Raises FrameError for malformed bytes and EOFError when the peer ends inside a frame.
        """
        if not self._fill(memoryview(self._header), may_end=True):
            return None
        frame_type, size = parse_frame_header(self._header)
        if size > self._buffer.nbytes:
            self._buffer = np.empty((size + size // 2 + 7) // 8, np.uint64)
        payload = self._buffer.view(np.uint8)[:size]
        self._fill(payload.data, may_end=False)
        return Frame(frame_type, payload)

    def send_map(self, frame_type: FrameType, values: Mapping[str, Any]) -> None:
        self.send(frame_type, [memoryview(msgpack.packb(dict(values)))])

    def send(self, frame_type: FrameType, buffers: list[memoryview]) -> None:
        """Sends one frame whose payload is the buffers joined; waits until all is sent."""
        size = sum(buffer.nbytes for buffer in buffers)
        pending = [memoryview(encode_frame_header(frame_type, size)), *buffers]
        pending = [buffer for buffer in pending if buffer.nbytes]
        while pending:
            sent = self._sock.sendmsg(pending[:_MAX_BUFFERS])
            done = 0
            while done < len(pending) and sent >= pending[done].nbytes:
                sent -= pending[done].nbytes
                done += 1
            del pending[:done]
            if sent:
                pending[0] = pending[0][sent:]

    def _fill(self, view: memoryview, *, may_end: bool) -> bool:
        got = 0
        while got < view.nbytes:
            count = self._sock.recv_into(view[got:])
            if count == 0:
                if may_end and got == 0:
                    return False
                raise EOFError("the peer closed the connection inside a frame")
            got += count
        return True
