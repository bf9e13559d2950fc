# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in Hugging Face format on disk: its configuration and its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.fallback.spec import FallbackSpec
from slipstream.models.registry import describe
from slipstream.models.spec import ArchSpec
from slipstream.models.tensor_files import TensorFiles, read_json

Spec = TypeVar("Spec", ArchSpec, FallbackSpec)

_SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]


def resolve_checkpoint(
    model: str, revision: str | None, *, weights: bool = True, code: bool = False
) -> Path:
    """The directory of a checkpoint: ``model`` itself, or a snapshot from the hub.

    ``weights`` false leaves the tensors out of a download, ``code`` adds Python files. Raises
    CheckpointError if ``model`` is neither a directory nor something that the hub gives us.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or model.startswith(("/", ".", "~")):
        raise CheckpointError(f"model: {model} is not a directory")
    from huggingface_hub import snapshot_download  # costs import time and is rarely needed

    small = [*_SMALL_FILES, "*.py"] if code else _SMALL_FILES

    def fetch(*patterns: str) -> Path:
        allowed = [*small, *patterns]
        return Path(snapshot_download(model, revision=revision, allow_patterns=allowed))

    try:
        path = fetch("*.safetensors") if weights else fetch()
        if weights and not any(path.glob("*.safetensors")):
            path = fetch("pytorch_model*.bin")
        return path
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
        self.spec = with_generation_ends(spec, path)

    def tensors(self, *, safetensors_only: bool = False) -> TensorFiles:
        """Opens the files. Raises CheckpointError naming what is missing, damaged or doubled."""
        return TensorFiles(
            self.path, self.family, self.spec.num_layers, safetensors_only=safetensors_only
        )


def with_generation_ends(spec: Spec, path: Path) -> Spec:
    """``spec`` with what generation_config.json adds: chat checkpoints name their end-of-turn
    token only there. Raises CheckpointError naming the field at fault."""
    file = path / "generation_config.json"
    if not file.is_file():
        return spec
    generation: ConfigReader = ConfigReader(read_json(file), "generation_config.json: ")
    ends = tuple(dict.fromkeys((*spec.end_ids, *generation.token_ids("eos_token_id"))))
    pads = generation.token_ids("pad_token_id")
    pad_id = spec.pad_id if spec.pad_id >= 0 or not pads else pads[0]
    return replace(spec, end_ids=ends, pad_id=pad_id)
