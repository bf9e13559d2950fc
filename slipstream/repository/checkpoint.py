# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's small files say of its size; no weights are read."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import HfApi, hf_hub_download

from slipstream.errors import SlipstreamError
from slipstream.models.kv_scale_names import kv_scale_of

if TYPE_CHECKING:
    from slipstream.models.served import ServedSpec

ModelImpl = Literal["auto", "native", "transformers"]

_MAX_HEADER = 100_000_000
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KV_DTYPE_BYTES = {**DTYPE_BYTES, "fp8": 1}


class CheckpointError(SlipstreamError, ValueError):
    """A checkpoint whose size cannot be told; the message names the file and the fault."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What memory depends on.

    parameters: elements of all tensors; the widths in bytes come from the serving dtype.
    stored_dtype: the checkpoint's own, "float32", "bfloat16" or "float16".
    spec: what a worker reads from the checkpoint.
    """

    name: str
    parameters: int
    stored_dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    spec: ServedSpec

    @property
    def latent(self) -> bool:
        """Attention caches one vector of ``head_dim`` a token, not keys and values."""
        return self.spec.latent_dim is not None

    def kv_bytes_per_token(self, dtype: str) -> int:
        """What is cached of one token in all layers; dtype: of KV_DTYPE_BYTES."""
        vectors = self.num_layers * (1 if self.latent else 2 * self.num_kv_heads)
        return vectors * self.head_dim * KV_DTYPE_BYTES[dtype]

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * DTYPE_BYTES[dtype]


class UnmeasuredError(CheckpointError):
    """A checkpoint that may be served, but whose sizes are known only once it is loaded."""


def read_checkpoint(
    model: str,
    revision: str = "",
    *,
    impl: ModelImpl = "auto",
    trust_remote_code: bool = False,
) -> CheckpointFacts:
    """Reads config.json and the headers of the weight files of a directory or a hub id.

    Code that comes with the checkpoint does not run, trusted or not.

    Raises:
        UnmeasuredError: it would have to.
        CheckpointError: a file is missing or damaged, or the model is not supported.
    """
    folder = Path(model)
    if folder.is_dir():
        config = _read_json(folder / "config.json")
        parameters = _values(sum(map(_elements, _weight_files(folder)), Counter()))
    else:
        config, parameters = _read_hub(model, revision or None)
    return _facts(model, config, parameters, impl, trust_remote_code)


def _read_hub(model: str, revision: str | None) -> tuple[dict[str, Any], int]:
    try:
        file = hf_hub_download(model, "config.json", revision=revision)
        metadata = HfApi().get_safetensors_metadata(model, revision=revision)
    except Exception as error:  # the hub client raises many kinds: no network, no such repository
        raise CheckpointError(
            f"{model}: is no directory, and the hub does not answer for it ({error})"
        ) from None
    elements = {str(dtype): count for dtype, count in metadata.parameter_count.items()}
    return _read_json(Path(file)), _values(elements)


def _weight_files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
            return [folder / shard for shard in shards]
        if files := sorted(folder.glob("*.safetensors" if suffix != "bin" else f"{stem}.bin")):
            return files
    raise CheckpointError(f"{folder}: no *.safetensors files and no pytorch_model.bin")


def _elements(file: Path) -> Counter[str]:
    """Elements of all tensors in a file by their dtype, from its header."""
    if file.suffix == ".bin":
        return _elements_of_archive(file)
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
    counts: Counter[str] = Counter()
    for name, entry in header.items():
        if name != "__metadata__" and kv_scale_of(name) is None:
            counts[entry["dtype"]] += math.prod(entry["shape"])
    return counts


def _values(elements: Mapping[str, int]) -> int:
    """Values that stored elements become: 17 bytes of MXFP4, one of them a scale, hold 32."""
    packed = elements.get("U8", 0)
    return sum(elements.values()) - packed + packed * 32 // 17


def _elements_of_archive(file: Path) -> Counter[str]:
    from slipstream.models.torch_archive import read_torch_archive  # costs torch

    try:
        tensors = read_torch_archive(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    counts: Counter[str] = Counter()
    for name, stored in tensors.items():
        if kv_scale_of(name) is None:
            counts["U8" if stored.dtype == "uint8" else stored.dtype] += stored.elements
    return counts


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


def _facts(
    model: str, config: dict[str, Any], parameters: int, impl: ModelImpl, trust_remote_code: bool
) -> CheckpointFacts:
    # The worker's own reading of config.json, so that a plan cannot disagree with it; torch, which
    # comes with it, is loaded only by who plans.
    from slipstream.models import selection

    try:
        spec = selection.served_spec(config, impl, trust_remote_code=trust_remote_code)
    except selection.UnmeasuredError as error:
        raise UnmeasuredError(f"{model}: {error}") from None
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
