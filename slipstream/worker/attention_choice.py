# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose attention kernels a model is served with."""

from __future__ import annotations

from typing import Literal

import torch

from slipstream.attention.interface import ScoreSpec
from slipstream.layers.device import has_kernels
from slipstream.models.decoder import Decoder
from slipstream.models.served import ServedModel
from slipstream.models.spec import ArchSpec
from slipstream.worker.config import ConfigError, WorkerConfig

AttentionChoice = Literal["triton", "flashinfer", "sdpa"]


def choose_attention(config: WorkerConfig, decoder: ServedModel) -> AttentionChoice:
    """What ``attention_backend`` means for a model on its device.

    Raises ConfigError for kernels that do not serve it, with what they lack.
    """
    asked = config.attention_backend
    if asked == "sdpa":
        return "sdpa"
    lacking = _kernels_lack(decoder, config.tokens_per_block)
    if asked == "auto":
        return "triton" if lacking is None else "sdpa"
    if lacking is None and asked == "flashinfer":
        assert isinstance(decoder, Decoder)
        lacking = _flashinfer_lacks(config, decoder)
    if lacking is not None:
        raise ConfigError(f"attention_backend is {asked!r}: {lacking}; set auto")
    return asked


def _kernels_lack(decoder: ServedModel, tokens_per_block: int) -> str | None:
    """Why kernels for GPUs cannot serve a model; None if they can, and never wait for the host."""
    spec = decoder.spec
    if not has_kernels(decoder.device):
        return (
            f"device is {str(decoder.device)!r}, an NVIDIA GPU of compute capability 8.0 or more "
            "is needed, and torch's compiler for it"
        )
    if not isinstance(decoder, Decoder):
        return f"{spec.architecture} runs on transformers' forward, which is served with sdpa alone"
    if spec.latent_dim is not None:
        return (
            f"{spec.architecture} caches latent vectors (multi-head latent attention), which are "
            "served with sdpa alone"
        )
    if spec.head_dim > 256:
        return f"the checkpoint's head_dim is {spec.head_dim}, must be at most 256"
    if tokens_per_block & (tokens_per_block - 1):
        return f"tokens_per_block is {tokens_per_block}, must be a power of two"
    return None


def _flashinfer_lacks(config: WorkerConfig, decoder: Decoder) -> str | None:
    from slipstream.kernels import flashinfer_calls as flashinfer

    installed = flashinfer.installed_version()
    if installed != flashinfer.VERSION:
        found = "is not installed" if installed is None else f"{installed} is installed"
        return (
            f"flashinfer-python {found}, {flashinfer.VERSION} is needed: "
            "pip install 'slipstream[flashinfer]'"
        )
    capability = torch.cuda.get_device_capability(decoder.device)
    if capability != flashinfer.CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (capability, flashinfer.CAPABILITY))
        return f"{decoder.device} has compute capability {have}, {need} is needed"
    return flashinfer_lacks_sizes(config, decoder.spec, decoder.dtype)


def flashinfer_lacks_sizes(config: WorkerConfig, spec: ArchSpec, dtype: torch.dtype) -> str | None:
    """Why FlashInfer cannot serve a model on any device, or None."""
    from slipstream.kernels.flashinfer_calls import BLOCK_SIZES, HEAD_DIMS, MAX_GROUP

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
        lacking = _scores_lack(layer.attention.scores, layer.attention.sinks)
        if lacking is not None:
            return f"layer {number} of the checkpoint has {lacking}, which is not served"
    return None


def _scores_lack(scores: ScoreSpec, sinks: bool) -> str | None:
    if sinks:
        return "attention sinks"
    if scores.soft_cap is not None:
        return f"attention scores with a soft cap of {scores.soft_cap:g}"
    if scores.mask.kind == "chunked":
        return f"attention in chunks of {scores.mask.size} positions"
    return None
