# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's small files say of its size; no weights are read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, hf_hub_download

from slipstream.errors import SlipstreamError

if TYPE_CHECKING:
    from slipstream.models.spec import ArchSpec

_MAX_HEADER = 100_000_000
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class CheckpointError(SlipstreamError, ValueError):
    """A checkpoint whose size cannot be told; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What memory depends on.

    parameters: elements of all tensors; the widths in bytes come from the serving dtype.
    stored_dtype: the checkpoint's own, "float32", "bfloat16" or "float16". spec: what a worker
    reads from the checkpoint.
    """

    name: str
    parameters: int
    stored_dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    spec: ArchSpec

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[dtype]

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * DTYPE_BYTES[dtype]


def read_checkpoint(model: str, revision: str = "") -> CheckpointFacts:
    """Reads config.json and the headers of the safetensors files of a directory or a hub id.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not supported.
    """
    folder = Path(model)
    if folder.is_dir():
        config = _read_json(folder / "config.json")
        parameters = sum(_elements(file) for file in _weight_files(folder))
    else:
        config, parameters = _read_hub(model, revision or None)
    return _facts(model, config, parameters)


def _read_hub(model: str, revision: str | None) -> tuple[dict[str, Any], int]:
    try:
        file = hf_hub_download(model, "config.json", revision=revision)
        metadata = HfApi().get_safetensors_metadata(model, revision=revision)
    except Exception as error:  # the hub client raises many kinds: no network, no such repository
        raise CheckpointError(
            f"{model}: is no directory, and the hub does not answer for it ({error})"
        ) from None
    return _read_json(Path(file)), sum(metadata.parameter_count.values())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
        files = [folder / shard for shard in shards]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors files")
    return files


def _elements(file: Path) -> int:
    """Elements of all tensors in a safetensors file, from its header."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise CheckpointError(f"{file}: header of {size} bytes, not a safetensors file")
            header = json.loads(stream.read(size))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    except (struct.error, ValueError) as error:
        raise CheckpointError(f"{file}: damaged safetensors header ({error})") from None
    return sum(
        math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return loaded


def _facts(model: str, config: dict[str, Any], parameters: int) -> CheckpointFacts:
    # The worker's own reading of config.json, so that a plan cannot disagree with it; torch, which
    # comes with it, is loaded only by who plans.
    from slipstream.models.registry import describe

    try:
        spec, _ = describe(config)
    except ValueError as error:
        raise CheckpointError(f"{model}: {error}") from None
    stored = spec.dtype or "float32"
    if stored not in DTYPE_BYTES:
        supported = ", ".join(DTYPE_BYTES)
        raise CheckpointError(f"{model}: dtype is {stored!r}; supported: {supported}")
    return CheckpointFacts(
        name=model,
        parameters=parameters,
        stored_dtype=stored,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_seq_len=spec.max_positions,
        spec=spec,
    )
