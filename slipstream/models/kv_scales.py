# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The scales of an FP8 KV cache that a checkpoint carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipstream.attention.kv_scale import KvScale
from slipstream.models.config_reader import CheckpointError
from slipstream.models.kv_scale_names import kv_scale_of
from slipstream.models.tensor_files import find_tensors, read_json

# What an FP8 scheme must say for its scales to mean what KvScale means.
_SCHEME = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
}


def without_kv_scheme(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json without a ``quantization_config`` that concerns the KV cache alone.

    Weights are then as in any checkpoint. One that quantises weights stays, for its reader to
    refuse or serve. Raises CheckpointError for a KV scheme that is not one FP8 scale a layer.
    """
    quantization = values.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("config_groups"):
        return values
    scheme = quantization.get("kv_cache_scheme")
    if quantization.get("quant_method") != "compressed-tensors" or not isinstance(scheme, dict):
        return values
    for field, served in _SCHEME.items():
        if scheme.get(field, served) != served:
            raise CheckpointError(
                f"config.json: quantization_config.kv_cache_scheme.{field} is "
                f"{scheme[field]!r}; supported: {served!r}"
            )
    return {name: value for name, value in values.items() if name != "quantization_config"}


def carries_kv_scales(path: Path, *, safetensors_only: bool = False) -> bool:
    """Whether a checkpoint directory has any. Raises CheckpointError as ``read_kv_scales``."""
    return any(map(kv_scale_of, find_tensors(path, safetensors_only=safetensors_only)))


def read_kv_scales(
    path: Path, num_layers: int, *, safetensors_only: bool = False
) -> tuple[KvScale, ...] | None:
    """One for each layer, None for a checkpoint without any.

    Raises CheckpointError naming a scale that is no finite positive number, one that is not of this
    model, or layers without theirs.
    """
    found: dict[tuple[int, str], tuple[str, float]] = {}
    for name, (file, stored) in find_tensors(path, safetensors_only=safetensors_only).items():
        place = kv_scale_of(name)
        if place is None:
            continue
        layer, planes = place
        if layer >= num_layers:
            raise CheckpointError(f"{file.path}: {name}: the model has {num_layers} layers")
        if stored.elements != 1:
            raise CheckpointError(
                f"{file.path}: {name} is {stored.shape}; supported: one number for the layer"
            )
        scale = float(file.view(stored).float())
        if not (math.isfinite(scale) and scale > 0):
            raise CheckpointError(f"{file.path}: {name} is {scale}, expected a positive number")
        for plane in planes:
            earlier, value = found.setdefault((layer, plane), (name, scale))
            if value != scale:
                raise CheckpointError(
                    f"{file.path}: {earlier} is {value} and {name}, which is the same, {scale}"
                )
    if not found:
        return None
    missing = [
        f"{plane}_scale of layer {layer}"
        for layer in range(num_layers)
        for plane in "kv"
        if (layer, plane) not in found
    ]
    if missing:
        raise CheckpointError(
            f"{path}: has scales of the KV cache, but lacks {', '.join(missing[:8])}"
        )
    return tuple(KvScale(found[layer, "k"][1], found[layer, "v"][1]) for layer in range(num_layers))


def has_kv_scheme(path: Path) -> bool:
    """Whether config.json promises scales, so that their absence is a fault."""
    values = read_json(path / "config.json")
    return without_kv_scheme(values) is not values
