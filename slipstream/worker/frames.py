# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The bytes between the executor and a worker, as NumPy sees them.

Mirrors ``backend/worker_link/step_frame.h`` and ``backend/executor/step.h``. Everything is
little-endian; every array of a STEP or RESULT payload starts at a multiple of eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.link import MAGIC, MAX_PAYLOAD, VERSION, FrameType

TOKEN_FROM_SLOT = -1
NO_BLOCK = -1

UInt32Array = npt.NDArray[np.uint32]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
RecordArray = npt.NDArray[np.void]


class SeqFlag(IntFlag):
    SAMPLE = 1
    CONTEXT_LOGITS = 2


class AdmitFlag(IntFlag):
    GENERATION_LOGITS = 1
    HISTORY = 2


class SeqStatus(IntEnum):
    OK = 0
    NON_FINITE = 1


FRAME_HEADER = np.dtype(
    [("magic", "<u4"), ("version", "<u2"), ("type", "<u2"), ("payload_bytes", "<u8")]
)

STEP_HEADER = np.dtype(
    [
        ("step_id", "<u8"),
        ("num_seqs", "<u4"),
        ("num_tokens", "<u4"),
        ("num_new_blocks", "<u4"),
        ("num_copies", "<u4"),
        ("num_admitted", "<u4"),
        ("num_retired", "<u4"),
        ("num_aux", "<u4"),
        ("num_groups", "<u4"),
    ]
)

RESULT_HEADER = np.dtype(
    [
        ("step_id", "<u8"),
        ("start_ns", "<u8"),
        ("end_ns", "<u8"),
        ("num_logits", "<u8"),
        ("num_seqs", "<u4"),
        ("num_tokens", "<u4"),
        ("num_logprobs", "<u4"),
        ("reserved", "<u4"),
    ]
)

BLOCK_COPY = np.dtype([("src", "<i4"), ("dst", "<i4"), ("num_tokens", "<i4"), ("group", "<i4")])

ADMIT_RECORD = np.dtype(
    [
        ("seed", "<u8"),
        ("slot", "<u4"),
        ("flags", "<u4"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("top_p_decay", "<f4"),
        ("top_p_min", "<f4"),
        ("top_p_reset_id", "<i4"),
        ("repetition_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("prompt_ignore_length", "<i4"),
        ("min_tokens", "<i4"),
        ("num_logprobs", "<i4"),
        ("prompt_len", "<i4"),
        ("history_offset", "<u4"),
        ("history_len", "<u4"),
        ("end_ids_offset", "<u4"),
        ("end_ids_len", "<u4"),
        ("bad_words_offset", "<u4"),
        ("bad_words_len", "<u4"),
        ("bias_offset", "<u4"),
        ("bias_len", "<u4"),
    ]
)

_U4 = np.dtype("<u4")
_I4 = np.dtype("<i4")
_F4 = np.dtype("<f4")

# Array name, element type, and the header field that counts its elements: in wire order.
STEP_ARRAYS: tuple[tuple[str, np.dtype[Any], str], ...] = (
    ("slot", _U4, "num_seqs"),
    ("num_tokens", _U4, "num_seqs"),
    ("first_position", _U4, "num_seqs"),
    ("num_new_blocks", _U4, "num_seqs"),
    ("flags", _U4, "num_seqs"),
    ("token_ids", _I4, "num_tokens"),
    ("new_block_ids", _I4, "num_new_blocks"),
    ("copies", BLOCK_COPY, "num_copies"),
    ("admitted", ADMIT_RECORD, "num_admitted"),
    ("retired", _U4, "num_retired"),
    ("aux", _I4, "num_aux"),
)

RESULT_ARRAYS: tuple[tuple[str, np.dtype[Any], str], ...] = (
    ("slot", _U4, "num_seqs"),
    ("status", _U4, "num_seqs"),
    ("num_tokens", _U4, "num_seqs"),
    ("logprob_width", _U4, "num_seqs"),
    ("context_rows", _U4, "num_seqs"),
    ("generation_rows", _U4, "num_seqs"),
    ("tokens", _I4, "num_tokens"),
    ("logprob_ids", _I4, "num_logprobs"),
    ("logprob_values", _F4, "num_logprobs"),
    ("logits", _F4, "num_logits"),
)


def _struct_of(header: np.dtype[Any]) -> struct.Struct:
    """A header as plain numbers: NumPy takes microseconds to read a field, struct does not."""
    codes = {8: "Q", 4: "I", 2: "H"}
    assert header.fields, "headers are records"
    assert header.names
    return struct.Struct("<" + "".join(codes[header.fields[n][0].itemsize] for n in header.names))


def _indexed(
    header: np.dtype[Any], arrays: tuple[tuple[str, np.dtype[Any], str], ...]
) -> tuple[tuple[str, np.dtype[Any], int, npt.NDArray[Any]], ...]:
    """The arrays with the place of their count among the header's numbers, and an empty one."""
    assert header.names, "headers are records"
    return tuple(
        (name, dtype, header.names.index(count), np.empty(0, dtype))
        for name, dtype, count in arrays
    )


_FRAME = _struct_of(FRAME_HEADER)
_STEP = _struct_of(STEP_HEADER)
_RESULT = _struct_of(RESULT_HEADER)
_STEP_INDEXED = _indexed(STEP_HEADER, STEP_ARRAYS)
_PADS = tuple(bytes(size) for size in range(8))
_NO_INTS = np.empty(0, np.int32)
_NO_FLOATS = np.empty(0, np.float32)
_SEQUENCE_ARRAYS = [(name, dtype) for name, dtype, count in RESULT_ARRAYS if count == "num_seqs"]
_OTHER_ARRAYS = [(name, dtype) for name, dtype, count in RESULT_ARRAYS if count != "num_seqs"]


class FrameError(ValueError):
    """Bytes that are not a valid frame; the connection cannot be used any more."""


def aligned(offset: int) -> int:
    """Where the next array of a STEP or RESULT payload starts."""
    return (offset + 7) & ~7


@dataclass(slots=True)
class StepPlan:
    """One step as the executor decided it. The arrays view the received payload.

    One entry per scheduled sequence in ``slot``, ``num_tokens`` (>= 1), ``first_position``,
    ``num_new_blocks`` and ``flags`` (:class:`SeqFlag`); ``token_ids`` holds the sequences' values
    one after the other, ``new_block_ids`` those of each KV group, group by group. A token id of
    ``TOKEN_FROM_SLOT`` means the token that this slot sampled last; a block id of ``NO_BLOCK`` one
    that no position from this step on sees.
    """

    step_id: int
    num_groups: int
    slot: UInt32Array
    num_tokens: UInt32Array
    first_position: UInt32Array
    num_new_blocks: UInt32Array
    flags: UInt32Array
    token_ids: Int32Array
    new_block_ids: Int32Array
    copies: RecordArray
    admitted: RecordArray
    retired: UInt32Array
    aux: Int32Array


@dataclass(slots=True)
class StepResult:
    """What a worker returns for a plan: entry i belongs to the plan's sequence i.

    ``logits`` holds, per sequence, its context rows, then its generation rows, each row one
    float32 a vocabulary entry. Times are CLOCK_MONOTONIC nanoseconds around the forward pass.
    ``packed``: what ``pack_sequences`` gives for this result, where it is known beforehand.
    """

    step_id: int
    start_ns: int
    end_ns: int
    slot: UInt32Array
    status: UInt32Array
    num_tokens: UInt32Array
    logprob_width: UInt32Array
    context_rows: UInt32Array
    generation_rows: UInt32Array
    tokens: Int32Array
    logprob_ids: Int32Array = field(default_factory=lambda: _NO_INTS)
    logprob_values: Float32Array = field(default_factory=lambda: _NO_FLOATS)
    logits: Float32Array = field(default_factory=lambda: _NO_FLOATS)
    packed: bytes | None = None


def parse_step(payload: npt.NDArray[np.uint8]) -> StepPlan:
    """Views a STEP payload as a plan, without copying.

    ``payload`` must start at an address that is a multiple of eight. Raises FrameError when the
    counts of the header do not add up to the payload's size.
    """
    if payload.size < STEP_HEADER.itemsize:
        raise FrameError(f"STEP payload of {payload.size} bytes is shorter than its header")
    data = payload.data
    header = _STEP.unpack_from(data)
    offset, size = _STEP.size, payload.size
    arrays = []
    for name, dtype, count, empty in _STEP_INDEXED:
        if not header[count]:
            arrays.append(empty)
            continue
        end = offset + header[count] * dtype.itemsize
        if end > size:
            raise FrameError(f"STEP payload of {size} bytes ends inside {name}, which needs {end}")
        arrays.append(np.frombuffer(data, dtype, header[count], offset))
        offset = aligned(end)
    if offset != aligned(size):
        raise FrameError(f"STEP payload has {size} bytes; its arrays end at {offset}")
    return StepPlan(header[0], header[-1], *arrays)


def encode_result(result: StepResult) -> list[memoryview]:
    """The RESULT payload as buffers to send one after the other; large arrays are not copied."""
    header = _RESULT.pack(
        result.step_id,
        result.start_ns,
        result.end_ns,
        result.logits.size,
        result.slot.size,
        result.tokens.size,
        result.logprob_ids.size,
        0,
    )
    packed = pack_sequences(result) if result.packed is None else result.packed
    arrays = [(getattr(result, name), dtype) for name, dtype in _OTHER_ARRAYS]
    return pack_arrays(header + packed, arrays)


def pack_sequences(result: StepResult) -> bytes:
    """The arrays with an entry per sequence, as they follow the header."""
    arrays = [(getattr(result, name), dtype) for name, dtype in _SEQUENCE_ARRAYS]
    return b"".join(pack_arrays(b"", arrays))


def pack_arrays(
    header: bytes, arrays: Sequence[tuple[npt.NDArray[Any], np.dtype[Any]]]
) -> list[memoryview]:
    """A payload: the fixed header, then the arrays, each at a multiple of eight bytes."""
    buffers = [memoryview(header)]
    offset = len(header)
    for array, dtype in arrays:
        if pad := aligned(offset) - offset:
            buffers.append(memoryview(_PADS[pad]))
            offset += pad
        if array.size:
            buffers.append(np.ascontiguousarray(array, dtype).data)
            offset += array.size * dtype.itemsize
    return buffers


def encode_frame_header(frame_type: FrameType, payload_bytes: int) -> bytes:
    return _FRAME.pack(MAGIC, VERSION, frame_type, payload_bytes)


def parse_frame_header(data: bytes | bytearray | memoryview) -> tuple[FrameType, int]:
    """The type and payload size of a frame. Raises FrameError for anything not of this version."""
    magic, version, number, payload_bytes = _FRAME.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"frame magic is {magic:#x}, expected {MAGIC:#x}")
    if version != VERSION:
        raise FrameError(f"frame version is {version}, this side speaks {VERSION}")
    if payload_bytes > MAX_PAYLOAD:
        raise FrameError(f"frame payload of {payload_bytes} bytes exceeds {MAX_PAYLOAD}")
    try:
        frame_type = FrameType(number)
    except ValueError:
        raise FrameError(f"frame type {number} is unknown") from None
    return frame_type, payload_bytes
