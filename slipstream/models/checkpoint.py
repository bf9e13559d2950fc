# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in Hugging Face format on disk: its configuration and its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.family import Family
from slipstream.models.registry import describe
from slipstream.models.spec import ArchSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def resolve_checkpoint(model: str, revision: str | None, *, weights: bool = True) -> Path:
    """The directory of a checkpoint: ``model`` itself, or a snapshot from the hub.

    ``weights`` false leaves the tensors out of a download. Raises CheckpointError if ``model`` is
    neither a directory nor something that the hub gives us.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or model.startswith(("/", ".", "~")):
        raise CheckpointError(f"model: {model} is not a directory")
    from huggingface_hub import snapshot_download  # costs import time and is rarely needed

    patterns = [p for p in _HUB_PATTERNS if weights or not p.endswith("safetensors")]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's errors share no base class
        raise CheckpointError(
            f"model: {model} is not a directory and the hub did not give it: {error}"
        ) from error


class Checkpoint:
    """Configuration and memory-mapped tensors of a checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Reads config.json. Raises CheckpointError naming what is missing or unsupported."""
        self.path = path
        spec, self.family = describe(read_json(path / "config.json"))
        self.spec = _with_generation_ends(spec, path)

    def tensors(self) -> TensorFiles:
        return TensorFiles(self.path, self.family)


class TensorFiles:
    """The safetensors files of a checkpoint, opened as memory maps."""

    def __init__(self, path: Path, family: Family) -> None:
        files = _files_of(path)
        self._ignored = family.ignored_tensors
        self._where: dict[str, Any] = {}
        self._prefix = ""
        for file in files:
            try:
                handle = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file}: {error}") from error
            self._where.update(dict.fromkeys(handle.keys(), handle))
        if not any(name.startswith(family.prefix) for name in self._where):
            self._prefix = family.prefix

    def check_names(self, expected: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Raises CheckpointError naming the tensors that are missing or not expected.

        ``optional`` tensors may be there without being read.
        """
        wanted = {self._stored(name) for name in expected}
        found = {name for name in self._where if not name.endswith(self._ignored)}
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

    def read(self, name: str) -> torch.Tensor:
        """A view of the memory map, valid as long as the tensor lives."""
        tensor: torch.Tensor = self._where[self._stored(name)].get_tensor(self._stored(name))
        return tensor

    def _stored(self, name: str) -> str:
        return name.removeprefix(self._prefix)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds {type(values).__name__}, expected an object")
    return values


def _with_generation_ends(spec: ArchSpec, path: Path) -> ArchSpec:
    # Chat checkpoints name their end-of-turn token only in generation_config.json.
    file = path / "generation_config.json"
    if not file.is_file():
        return spec
    generation = ConfigReader(read_json(file), "generation_config.json: ")
    ends = dict.fromkeys((*spec.end_ids, *generation.token_ids("eos_token_id")))
    pads = generation.token_ids("pad_token_id")
    pad_id = spec.pad_id if spec.pad_id >= 0 or not pads else pads[0]
    return replace(spec, end_ids=tuple(ends), pad_id=pad_id)


def _files_of(path: Path) -> list[Path]:
    index = path / _INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: weight_map is missing")
        names = sorted({str(name) for name in weight_map.values()})
        if absent := [name for name in names if not (path / name).is_file()]:
            raise CheckpointError(f"{index}: files are missing: {', '.join(absent)}")
        return [path / name for name in names]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".gguf"))
    hint = f"; {', '.join(others)} must be converted to safetensors" if others else ""
    raise CheckpointError(f"{path}: neither {_SINGLE} nor {_INDEX} is there{hint}")


def _shorten(names: set[str], limit: int = 8) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
