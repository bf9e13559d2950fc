# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The files that hold a checkpoint's tensors, as one set of named tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slipstream.models.config_reader import CheckpointError
from slipstream.models.family import Family
from slipstream.models.kv_scale_names import kv_scale_of
from slipstream.models.mapped_file import MappedFile
from slipstream.models.safetensors_header import read_safetensors_header
from slipstream.models.stored_tensor import StoredTensor
from slipstream.models.torch_archive import read_torch_archive


@dataclass(frozen=True, slots=True)
class _Format:
    single: str
    index: str
    read: Callable[[Path], dict[str, StoredTensor]]


# In the order in which they are looked for.
_FORMATS = (
    _Format("model.safetensors", "model.safetensors.index.json", read_safetensors_header),
    _Format("pytorch_model.bin", "pytorch_model.bin.index.json", read_torch_archive),
)


class TensorFiles:
    """The tensors of a checkpoint directory: known by their headers, read through memory maps."""

    def __init__(
        self, path: Path, family: Family, num_layers: int, *, safetensors_only: bool = False
    ) -> None:
        """Reads indices and headers, no weights. Raises CheckpointError naming file and tensor."""
        self._ignored = family.ignored_tensors
        self._ignored_parts = tuple(
            part.format(num_layers=num_layers) for part in family.ignored_parts
        )
        self._where = find_tensors(path, safetensors_only=safetensors_only)
        self._prefix = ""
        if not any(name.startswith(family.prefix) for name in self._where):
            self._prefix = family.prefix

    def check_names(self, expected: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Raises CheckpointError naming the tensors that are missing or not expected.

        ``optional`` tensors may be there without being read; scales of a KV cache are read where it
        is made: see kv_scales.
        """
        wanted = {self._stored(name) for name in expected}
        found = {
            name
            for name in self._where
            if not name.endswith(self._ignored)
            and not name.startswith(self._ignored_parts)
            and kv_scale_of(name) is None
        }
        problems = [
            f"{what} tensors: {_shorten(names)}"
            for what, names in (
                ("missing", wanted - found),
                ("unexpected", found - wanted - set(optional)),
            )
            if names
        ]
        if problems:
            raise CheckpointError("checkpoint has " + "; ".join(problems))

    def has(self, name: str) -> bool:
        return self._stored(name) in self._where

    def place(self, name: str) -> Path:
        """The file that holds a tensor, for messages."""
        return self._where[self._stored(name)][0].path

    def outline(self, name: str) -> torch.Tensor:
        """A tensor of the same shape and dtype without data."""
        stored = self._where[self._stored(name)][1]
        return torch.empty(stored.shape, dtype=getattr(torch, stored.dtype), device="meta")

    def read(self, name: str) -> torch.Tensor:
        """A view of the memory map, valid as long as the tensor lives. Must not be written to."""
        file, stored = self._where[self._stored(name)]
        return file.view(stored)

    def release(self, name: str) -> None:
        """Takes what was read of a tensor out of this process's memory."""
        file, stored = self._where[self._stored(name)]
        file.release(stored)

    def _stored(self, name: str) -> str:
        return name.removeprefix(self._prefix)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds {type(values).__name__}, expected an object")
    return values


def find_tensors(
    path: Path, *, safetensors_only: bool = False
) -> dict[str, tuple[MappedFile, StoredTensor]]:
    """Where each tensor of a checkpoint directory lies, by its stored name. Raises CheckpointError
    naming what is missing, damaged or doubled."""
    formats = _FORMATS[:1] if safetensors_only else _FORMATS
    for kind in formats:
        index, single = path / kind.index, path / kind.single
        if index.is_file():
            return _read_shards(path, index, kind)
        if single.is_file():
            tensors = kind.read(single)
            file = MappedFile(single)
            return {name: (file, stored) for name, stored in tensors.items()}
    names = " nor ".join(name for kind in formats for name in (kind.single, kind.index))
    others = sorted(f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".gguf"))
    hint = f"; {', '.join(others)} must be converted to safetensors" if others else ""
    raise CheckpointError(f"{path}: neither {names} is there{hint}")


def _read_shards(
    path: Path, index: Path, kind: _Format
) -> dict[str, tuple[MappedFile, StoredTensor]]:
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(f"{index}: files are missing: {', '.join(absent)}")
    found: dict[str, tuple[MappedFile, StoredTensor]] = {}
    for name in names:
        tensors = kind.read(path / name)
        lacking = [t for t, shard in weight_map.items() if shard == name and t not in tensors]
        if lacking:
            raise CheckpointError(
                f"{path / name}: lacks {_shorten(lacking)}, which {index.name} says it holds"
            )
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(
                f"{path / name}: holds {_shorten(twice)}, and so does {found[twice[0]][0].path}"
            )
        file = MappedFile(path / name)
        found.update((tensor, (file, stored)) for tensor, stored in tensors.items())
    return found


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(
                f"{index}: weight_map.{tensor} is {name!r}, expected the name of a file beside it"
            )
    return weight_map


def _shorten(names: Iterable[str], limit: int = 8) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
