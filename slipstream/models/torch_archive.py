# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What is in a file that ``torch.save`` wrote, such as pytorch_model.bin."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from slipstream.models.config_reader import CheckpointError
from slipstream.models.stored_tensor import StoredTensor


def read_torch_archive(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; no tensor's data is read.

    The file is a pickle, so torch's unpickler for weights reads it, which knows tensors and plain
    containers and runs nothing that the file names. Raises CheckpointError naming the file, and the
    entry if one is at fault.
    """
    _check_container(file)
    loaded = _unpickle(file)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: holds {type(loaded).__name__}, expected tensors by name")
    mappings = _mappings(file)
    return {str(name): _locate(file, name, value, mappings) for name, value in loaded.items()}


def _check_container(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(
                f"{file}: a Git LFS pointer instead of the file itself; fetch it with git lfs pull"
            )
        if not start.startswith(b"PK\x03\x04"):
            raise CheckpointError(
                f"{file}: not a file that torch.save writes since version 1.6; "
                "convert it to safetensors"
            )
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type]
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file}: cut off or damaged: {error}") from None
    if packed:
        raise CheckpointError(f"{file}: {packed[0]} is compressed and cannot be memory-mapped")


def _unpickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is an error here
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{file}: torch refuses to read weights from it: {_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    # torch wraps it in advice to load what it refused without the check.
    text = str(error)
    found = re.search(
        r"WeightsUnpickler error: (.*?)(?: by default\.|$)|^(Trying to load .*)$",
        text,
        re.MULTILINE,
    )
    reason = found[1] or found[2] if found else text.split("\n")[0]
    return reason or type(error).__name__


def _locate(
    file: Path, name: Any, value: Any, mappings: list[tuple[int, int, int]]
) -> StoredTensor:
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{file}: {name} is a {type(value).__name__}, expected a tensor")
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise CheckpointError(f"{file}: {name} is not a plain tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    if not value.numel():
        return StoredTensor(dtype, tuple(value.shape), value.stride(), 0)
    for start, end, offset in mappings:
        if start <= value.data_ptr() < end:
            at = value.data_ptr() - start + offset
            return StoredTensor(dtype, tuple(value.shape), value.stride(), at)
    raise CheckpointError(f"{file}: {name} does not lie in the file")


def _mappings(file: Path) -> list[tuple[int, int, int]]:
    """First and end address, and offset in the file, of each of this process's maps of it."""
    path = str(file.resolve())
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            found.append((start, end, int(fields[2], 16)))
    return found
