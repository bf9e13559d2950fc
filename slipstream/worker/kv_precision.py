# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""In which type keys and values are cached, and with which scales."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from slipstream.attention.kv_scale import FP8, UNSCALED, KvScale
from slipstream.models.kv_scales import carries_kv_scales, has_kv_scheme, read_kv_scales
from slipstream.models.served import ServedModel
from slipstream.worker.config import ConfigError, WorkerConfig

_FP8_CAPABILITY = (8, 9)  # the first whose instructions convert e4m3


@dataclass(frozen=True, slots=True)
class KvPrecision:
    """scales: layer by layer for FP8, None for caches of the model's own dtype. note: what to tell
    the user of the checkpoint's scales, empty if there is nothing to tell."""

    dtype: torch.dtype
    scales: tuple[KvScale, ...] | None = None
    note: str = ""


def choose_kv_precision(
    config: WorkerConfig, decoder: ServedModel, path: Path | None
) -> KvPrecision:
    """What ``kv_cache_dtype`` means for a model. path: its checkpoint, None: there are no weights.

    Raises ConfigError for a model or a device that FP8 is not served for, CheckpointError for a
    scale that cannot be used.
    """
    safe = config.load_format == "safetensors"
    if config.kv_cache_dtype == "auto":
        note = ""
        if path is not None and carries_kv_scales(path, safetensors_only=safe):
            name = str(decoder.dtype).removeprefix("torch.")
            note = (
                "the checkpoint's scales of an FP8 KV cache have no effect: kv_cache_dtype is "
                f"auto, which is {name} here"
            )
        return KvPrecision(decoder.dtype, note=note)
    _refuse_unserved(decoder)
    num_layers = decoder.spec.num_layers
    scales = None
    if path is not None:
        scales = read_kv_scales(path, num_layers, safetensors_only=safe)
        if scales is None and has_kv_scheme(path):
            raise ConfigError(
                f"kv_cache_dtype is 'fp8': {path / 'config.json'} has a kv_cache_scheme, but no "
                "tensor of the checkpoint is a k_scale or v_scale"
            )
    if scales is not None:
        return KvPrecision(FP8, scales, "the FP8 KV cache has the checkpoint's scales")
    note = "the FP8 KV cache has scales of 1: the checkpoint carries none"
    return KvPrecision(FP8, (UNSCALED,) * num_layers, note)


def _refuse_unserved(decoder: ServedModel) -> None:
    if decoder.spec.latent_dim is not None:
        raise ConfigError(
            f"kv_cache_dtype is 'fp8': {decoder.spec.architecture} caches latent vectors "
            "(multi-head latent attention), which are served in the model's dtype alone; set auto"
        )
    if decoder.device.type == "cuda":
        refuse_capability(decoder.device, torch.cuda.get_device_capability(decoder.device))


def refuse_capability(device: torch.device, capability: tuple[int, int]) -> None:
    """Raises ConfigError for a GPU that has no instructions for e4m3."""
    if capability < _FP8_CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (capability, _FP8_CAPABILITY))
        raise ConfigError(
            f"kv_cache_dtype is 'fp8': {device} has compute capability {have}, {need} is needed; "
            "set auto"
        )
