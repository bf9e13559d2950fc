# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of msgpack maps over a stream socket.

The header is that of ``backend/worker_link/step_frame.h``. Needs neither NumPy nor torch, so that
small processes start fast.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgpack

MAGIC = 0x4D525453  # "STRM"
VERSION = 3
MAX_PAYLOAD = 1 << 33
HEADER = struct.Struct("<IHHQ")  # magic, version, type, payload bytes

_PR_SET_PDEATHSIG = 1
_READ_SIZE = 1 << 20


class FrameType(IntEnum):
    """What a frame is; the payload of all but STEP and RESULT is one msgpack map."""

    CONFIG = 1
    PROGRESS = 2
    HELLO = 3
    ERROR = 4
    SHUTDOWN = 5
    STEP = 6
    RESULT = 7
    REQUEST = 8
    REPLY = 9
    STATS = 10


class LinkError(Exception):
    """The peer sent something that is not a frame of ours; the link is of no further use."""


def pack_header(frame_type: FrameType, payload_bytes: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, frame_type, payload_bytes)


def unpack_header(data: bytes) -> tuple[FrameType, int]:
    """The type and the payload size of a frame. Raises LinkError naming what is wrong."""
    magic, version, frame_type, payload_bytes = HEADER.unpack(data)
    if magic != MAGIC:
        raise LinkError(f"frame magic is {magic:#x}, expected {MAGIC:#x}")
    if version != VERSION:
        raise LinkError(f"frame version is {version}, this side speaks {VERSION}")
    if payload_bytes > MAX_PAYLOAD:
        raise LinkError(f"frame payload of {payload_bytes} bytes exceeds {MAX_PAYLOAD}")
    try:
        return FrameType(frame_type), payload_bytes
    except ValueError:
        raise LinkError(f"frame type {frame_type} does not belong on this link") from None


class Link:
    """One end of the connection. Owns the socket; used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def from_fd(cls, fd: int) -> Link:
        """Takes over an inherited socket, which processes started from here shall not inherit.

        Raises OSError if `fd` is not a socket.
        """
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def close(self) -> None:
        self._sock.close()

    def send(self, frame_type: FrameType, values: Mapping[str, Any]) -> None:
        payload = msgpack.packb(dict(values))
        self._sock.sendall(pack_header(frame_type, len(payload)) + payload)

    def receive(self) -> tuple[FrameType, dict[str, Any]] | None:
        """Waits for the next frame; None when the peer closed the connection.

        Bytes that are not UTF-8 arrive in strings as lone surrogates (``surrogateescape``): the
        reader of a field tells its sender. Raises LinkError for anything but a frame of one map.
        """
        header = self._read(HEADER.size)
        if header is None:
            return None
        frame_type, size = unpack_header(header)
        payload = self._read(size)
        if payload is None:
            return None
        try:
            values = msgpack.unpackb(payload, unicode_errors="surrogateescape")
        except (ValueError, msgpack.UnpackException) as error:
            raise LinkError(f"{frame_type.name} payload is not msgpack: {error}") from error
        if not isinstance(values, dict):
            raise LinkError(f"{frame_type.name} payload is not a map")
        return frame_type, values

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            piece = self._sock.recv(min(size - len(data), _READ_SIZE))
            if not piece:
                return None
            data += piece
        return bytes(data)


def end_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
