# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose attention kernels a model is served with."""

from __future__ import annotations

from typing import Literal

import torch

from slipstream.attention.interface import FULL, ScoreSpec
from slipstream.kernels import flashinfer_calls
from slipstream.kernels.flashinfer_calls import BLOCK_SIZES, HEAD_DIMS, MAX_GROUP
from slipstream.layers.device import has_kernels
from slipstream.models.decoder import Decoder
from slipstream.models.served import ServedModel
from slipstream.models.spec import ArchSpec
from slipstream.worker.config import ConfigError, WorkerConfig

_MOST_OF_AN_ERROR = 600  # characters: a compiler says much, and what matters last

AttentionChoice = Literal["triton", "flashinfer", "sdpa"]


def choose_attention(config: WorkerConfig, decoder: ServedModel) -> AttentionChoice:
    """What ``attention_backend`` means for a model on its device.

    Raises ConfigError for kernels that do not serve it, with what they lack.
    """
    asked = config.attention_backend
    if asked == "sdpa":
        return "sdpa"
    lacking = _device_lacks(asked, decoder.device) or _kernels_lack(config, decoder)
    if asked == "auto":
        return "triton" if lacking is None else "sdpa"
    if lacking is None and asked == "flashinfer":
        assert isinstance(decoder, Decoder)
        lacking = flashinfer_lacks(config, decoder.spec, decoder.dtype)
    if lacking is not None:
        raise _refusal(asked, lacking)
    return asked


def refuse_device(config: WorkerConfig, device: torch.device) -> None:
    """Raises ConfigError for kernels that no model can run on there, before one is loaded."""
    asked = config.attention_backend
    if asked in ("triton", "flashinfer"):
        lacking = _device_lacks(asked, device)
        if lacking is not None:
            raise _refusal(asked, lacking)


def load_flashinfer(config: WorkerConfig, spec: ArchSpec) -> None:
    """Loads what FlashInfer has for a model: no step is to wait for a compiler.

    Raises ConfigError where kernels are neither compiled nor can be.
    """
    masks = [layer.attention.scores.mask for layer in spec.layers]
    try:
        flashinfer_calls.load_kernels(
            spec.head_dim,
            spec.num_heads // spec.num_kv_heads,
            config.tokens_per_block,
            windows=any(mask != FULL for mask in masks),
            full=any(mask == FULL for mask in masks),
        )
    except (RuntimeError, OSError) as error:
        raise _refusal(
            "flashinfer",
            f"FlashInfer could not load or compile its kernels: {str(error)[-_MOST_OF_AN_ERROR:]}",
        ) from error


def _refusal(asked: str, lacking: str) -> ConfigError:
    return ConfigError(f"attention_backend is {asked!r}: {lacking}; set auto")


def _device_lacks(asked: str, device: torch.device) -> str | None:
    """Why kernels cannot run on a device, or None."""
    if not has_kernels(device):
        return (
            f"device is {str(device)!r}, an NVIDIA GPU of compute capability 8.0 or more is "
            "needed, and torch's compiler for it"
        )
    if asked != "flashinfer":
        return None
    installed = flashinfer_calls.installed_version()
    if installed != flashinfer_calls.VERSION:
        found = "is not installed" if installed is None else f"{installed} is installed"
        return (
            f"flashinfer-python {found}, {flashinfer_calls.VERSION} is needed: "
            "pip install 'slipstream[flashinfer]'"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability != flashinfer_calls.CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (capability, flashinfer_calls.CAPABILITY))
        return f"{device} has compute capability {have}, {need} is needed"
    return None


def _kernels_lack(config: WorkerConfig, decoder: ServedModel) -> str | None:
    """Why kernels for GPUs cannot serve a model; None if they can, and never wait for the host."""
    spec = decoder.spec
    if not isinstance(decoder, Decoder):
        return f"{spec.architecture} runs on transformers' forward, which is served with sdpa alone"
    if spec.latent_dim is not None:
        return (
            f"{spec.architecture} caches latent vectors (multi-head latent attention), which are "
            "served with sdpa alone"
        )
    if spec.head_dim > 256:
        return f"the checkpoint's head_dim is {spec.head_dim}, must be at most 256"
    if config.tokens_per_block & (config.tokens_per_block - 1):
        return f"tokens_per_block is {config.tokens_per_block}, must be a power of two"
    return None


def flashinfer_lacks(config: WorkerConfig, spec: ArchSpec, dtype: torch.dtype) -> str | None:
    """Why FlashInfer cannot serve a model on any device, or None."""
    if dtype != torch.bfloat16:
        return f"dtype is {str(dtype).removeprefix('torch.')}, must be bfloat16"
    if config.kv_cache_dtype != "auto":
        return f"kv_cache_dtype is {config.kv_cache_dtype!r}, must be 'auto'"
    if config.tokens_per_block not in BLOCK_SIZES:
        allowed = ", ".join(map(str, BLOCK_SIZES))
        return f"tokens_per_block is {config.tokens_per_block}, must be one of {allowed}"
    if spec.head_dim not in HEAD_DIMS:
        allowed = ", ".join(map(str, HEAD_DIMS))
        return f"the checkpoint's head_dim is {spec.head_dim}, must be one of {allowed}"
    group = spec.num_heads // spec.num_kv_heads
    if group > MAX_GROUP:
        return (
            f"the checkpoint has {spec.num_heads} query heads on {spec.num_kv_heads} KV heads, "
            f"must be at most {MAX_GROUP} on each"
        )
    for number, layer in enumerate(spec.layers):
        scores = layer.attention.scores
        lacking = _scores_lack(scores, layer.attention.sinks, config.tokens_per_block)
        if lacking is not None:
            return f"layer {number} of the checkpoint has {lacking}, which is not served"
    return None


def _scores_lack(scores: ScoreSpec, sinks: bool, per_block: int) -> str | None:
    if sinks:
        return "attention sinks"
    if scores.soft_cap is not None:
        return f"attention scores with a soft cap of {scores.soft_cap:g}"
    if scores.mask.kind == "chunked":
        return f"attention in chunks of {scores.mask.size} positions"
    # What lies below a window is read from its first block, which has to be written to its end.
    if scores.mask.kind == "sliding" and scores.mask.size < per_block:
        return f"a window of {scores.mask.size}, less than the {per_block} tokens of a block"
    return None
