# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, checked against the file; nothing here needs torch.

The format is that of https://github.com/huggingface/safetensors: eight bytes with the size of the
header, a JSON object, and the tensors without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, TypeGuard

from slipstream.models.config_reader import CheckpointError
from slipstream.models.stored_tensor import StoredTensor, row_major

_MAX_HEADER = 100_000_000  # bytes; the format's own limit
# The format's name of a dtype, torch's name, and bytes an element.
_DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Raises CheckpointError naming the file, and the tensor if one is at fault: a file that is cut
    off, too long or no safetensors file at all; a header that contradicts itself.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{file}: {_not_a_header(start, length, size)}")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    entries = _parse(file, text)
    return _locate(file, entries, 8 + length, size)


def _not_a_header(start: bytes, length: int, size: int) -> str:
    if start.startswith(b"version "):
        return "a Git LFS pointer instead of the file itself; fetch it with git lfs pull"
    if len(start) < 8:
        return f"{size} bytes, too few for a safetensors file"
    return (
        f"its header should take {length} bytes, and the file has {size}: "
        "it is cut off, or not a safetensors file"
    )


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{file}: the header lists {twice} twice")
        return values

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the header holds {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    return header


def _locate(
    file: Path, entries: dict[str, Any], data_start: int, size: int
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(file, name, entry)
        found[name] = StoredTensor(dtype, shape, row_major(shape), data_start + begin)
        spans.append((data_start + begin, data_start + end, name))
    at = data_start
    for begin, end, name in sorted(spans):
        if begin != at:
            raise CheckpointError(f"{file}: {name} begins at byte {begin}, expected {at}")
        if end > size:
            raise CheckpointError(
                f"{file}: cut off: {name} ends at byte {end}, and the file has {size}"
            )
        at = end
    if at != size:
        raise CheckpointError(f"{file}: {size - at} bytes follow the last tensor")
    return found


def _entry(file: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of an entry that agrees with itself."""
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{file}: {name}: shape is {shape!r}, data_offsets {offsets!r}")
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name}: dtype is {dtype!r}; supported: {', '.join(_DTYPES)}"
        )
    torch_name, width = _DTYPES[dtype]
    begin, end = offsets
    if end - begin != math.prod(shape) * width:
        raise CheckpointError(
            f"{file}: {name}: {dtype} {shape} takes {math.prod(shape) * width} bytes, "
            f"the header says {end - begin}"
        )
    return torch_name, tuple(shape), begin, end


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)
