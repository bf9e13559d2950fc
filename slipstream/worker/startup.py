# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""From a worker configuration to a model that can run its first step."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slipstream.attention.device_attention import DeviceAttention
from slipstream.attention.kv_cache import KvCache, KvShape
from slipstream.attention.kv_scale import KvScale
from slipstream.layers.rows import RowKernels
from slipstream.models.checkpoint import resolve_checkpoint
from slipstream.models.decoder import Decoder
from slipstream.models.kv_groups import KvGroup, Serving, kv_groups
from slipstream.models.loader import Progress
from slipstream.models.rows import make_rows_apart, row_obstacle
from slipstream.models.selection import load_served
from slipstream.models.served import ServedModel
from slipstream.models.step_limits import StepLimits
from slipstream.worker.attention_choice import (
    choose_attention,
    load_flashinfer,
    refuse_device,
)
from slipstream.worker.config import ConfigError, WorkerConfig
from slipstream.worker.engine import ModelRunner
from slipstream.worker.kv_precision import KvPrecision, choose_kv_precision
from slipstream.worker.memory import activation_bytes, default_threads, kv_pool_blocks
from slipstream.worker.warm_up import warm_up

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A runner and what the executor is told of it."""

    runner: ModelRunner
    hello: dict[str, Any]


def load_model(config: WorkerConfig, progress: Progress) -> LoadedModel:
    """Loads the checkpoint and allocates the KV cache.

    progress: called with the fraction done, 0 to 1, and what is being done. Raises CheckpointError
    or ConfigError with a message for the user.
    """
    progress(0.0, "reading the checkpoint")
    device = choose_device(config.device)
    refuse_device(config, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and graphs are launched on the current one
    config = with_step_limits(config, device)
    dummy = config.load_format == "dummy"
    path = resolve_checkpoint(
        config.model, config.revision, weights=not dummy, code=config.trust_remote_code
    )
    decoder = load_served(
        path,
        config.dtype,
        device,
        impl=config.model_impl,
        trust_remote_code=config.trust_remote_code,
        dummy_seed=config.seed if dummy else None,
        safetensors_only=config.load_format == "safetensors",
        progress=lambda fraction, what: progress(0.05 + 0.75 * fraction, what),
    )
    if device.type == "cpu":
        # What is left to torch beside RowKernels is not worth threads that compete with theirs.
        torch.set_num_threads(1 if config.deterministic else cpu_threads(config, decoder))
    precision = choose_kv_precision(config, decoder, None if dummy else path)
    if precision.note:
        progress(0.8, precision.note)
    runner = make_runner(
        config, decoder, lambda done, what: progress(0.8 + 0.12 * done, what), precision
    )
    progress(0.92, "making a first step")
    try:
        warm_up(runner, config.max_num_tokens)
    except torch.OutOfMemoryError as error:
        cache = sum(cache.pool.nbytes for cache in runner.caches)
        raise ConfigError(_memory_message(decoder, cache, "activations")) from error
    table = b""
    if config.token_table:
        progress(0.95, "reading the tokenizer")
        table = token_table(config, path)
    progress(1.0, "ready")
    return LoadedModel(runner, hello(config, runner, table))


def choose_device(name: str) -> torch.device:
    """The device to run on; ``auto`` takes a GPU if torch sees one. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device is {name!r}; torch sees {count} CUDA devices")
    return device


def with_step_limits(config: WorkerConfig, device: torch.device) -> WorkerConfig:
    """The same with the limits of steps that suit the device, where they were left open."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else None
    limits = StepLimits.of(config.max_num_seqs, config.max_num_tokens, memory)
    return config.model_copy(update=asdict(limits))


def make_runner(
    config: WorkerConfig,
    decoder: ServedModel,
    progress: Progress = lambda fraction, what: None,
    precision: KvPrecision | None = None,
) -> ModelRunner:
    """Sizes and allocates the KV caches. Raises ConfigError naming the setting at fault.

    precision: of the caches; by default what the configuration means for a model without scales.
    """
    config = with_step_limits(config, decoder.device)
    precision = precision or choose_kv_precision(config, decoder, None)
    rows = row_kernels(config, decoder)
    kernels = choose_attention(config, decoder)
    progress(0.0, "allocating the KV cache")
    spec = decoder.spec
    if config.max_seq_len > spec.max_positions:
        raise ConfigError(
            f"max_seq_len is {config.max_seq_len}; the checkpoint's limit is {spec.max_positions}"
        )
    max_seq_len = config.max_seq_len or spec.max_positions
    serving = Serving(
        config.tokens_per_block, max_seq_len, config.max_num_seqs, config.max_num_tokens
    )
    groups = kv_groups(spec, max_seq_len)
    shapes = [
        KvShape(
            num_layers=len(group.layers),
            num_kv_heads=spec.num_kv_heads,
            tokens_per_block=config.tokens_per_block,
            head_dim=spec.head_dim,
            dtype=precision.dtype,
            latent_dim=spec.latent_dim,
        )
        for group in groups
    ]
    masks = [group.mask for group in groups]
    reserved = 0
    if decoder.device.type == "cuda":
        try:
            reserved = activation_bytes(decoder, config.max_num_tokens, config.max_num_seqs)
        except torch.OutOfMemoryError as error:
            activations = f"activations of {config.max_num_tokens} tokens"
            raise ConfigError(_memory_message(decoder, 0, activations)) from error
    pools = kv_pool_blocks(config, serving, masks, shapes, decoder.device, reserved)
    try:
        caches = [
            KvCache(shape, blocks, decoder.device)
            for shape, blocks in zip(shapes, pools, strict=True)
        ]
        if kernels == "sdpa":
            return ModelRunner(
                decoder,
                groups,
                caches,
                max_num_seqs=config.max_num_seqs,
                max_seq_len=max_seq_len,
                kv_scales=precision.scales,
                rows=rows,
            )
        return _gpu_runner(
            config, decoder, groups, caches, precision.scales, max_seq_len, kernels, progress
        )
    except torch.OutOfMemoryError as error:
        cache = sum(s.bytes_per_block * blocks for s, blocks in zip(shapes, pools, strict=True))
        raise ConfigError(_memory_message(decoder, cache, f"activations {reserved}")) from error


def cpu_threads(config: WorkerConfig, decoder: ServedModel) -> int:
    """Threads of a worker on a CPU."""
    return config.num_threads or default_threads(decoder.weight_bytes)


def row_kernels(config: WorkerConfig, decoder: ServedModel) -> RowKernels | None:
    """With ``deterministic`` makes the decoder compute every token by itself, and returns what it
    does that with. Raises ConfigError for a model or a setting that it is not served for."""
    if not config.deterministic:
        return None
    dtype = str(decoder.dtype).removeprefix("torch.")
    device = str(decoder.device)
    obstacle = row_obstacle(
        decoder.spec, dtype, device, config.kv_cache_dtype, config.attention_backend
    )
    if obstacle is not None:
        raise ConfigError(f"deterministic is true: {obstacle}; set false")
    assert isinstance(decoder, Decoder)
    kernels = RowKernels(cpu_threads(config, decoder))
    make_rows_apart(decoder, kernels)
    return kernels


def _gpu_runner(
    config: WorkerConfig,
    decoder: ServedModel,
    groups: Sequence[KvGroup],
    caches: Sequence[KvCache],
    kv_scales: Sequence[KvScale] | None,
    max_seq_len: int,
    kernels: DeviceAttention,
    progress: Progress,
) -> ModelRunner:
    # These need a GPU's compiler.
    from slipstream.worker.graph_runner import GraphRunner
    from slipstream.worker.tuning import choose_kernels

    assert isinstance(decoder, Decoder)
    if kernels == "flashinfer":
        progress(0.0, "loading FlashInfer's kernels, or compiling them, which takes minutes")
        load_flashinfer(config, decoder.spec)
    runner = GraphRunner(
        decoder,
        groups,
        caches,
        max_num_seqs=config.max_num_seqs,
        max_seq_len=max_seq_len,
        max_num_tokens=config.max_num_tokens,
        kv_scales=kv_scales,
        kernels=kernels,
    )
    if config.cuda_graphs:
        progress(0.05, "choosing kernels")
        choose_kernels(decoder)
        runner.capture(lambda done, what: progress(0.1 + 0.9 * done, what))
    return runner


def _memory_message(decoder: ServedModel, cache: int, rest: str) -> str:
    """cache: bytes; rest: what was to lie beside it and the weights."""
    free, total = torch.cuda.mem_get_info(decoder.device)
    return (
        f"out of memory on {decoder.device}: weights {decoder.weight_bytes} + KV cache {cache} + "
        f"{rest}, of {total} bytes, of which {free} are free now; lower kv_cache_fraction, "
        "kv_cache_bytes or kv_cache_tokens, max_num_tokens or max_num_seqs"
    )


def token_table(config: WorkerConfig, path: Path) -> bytes:
    """The detokenizer's table, of the tokenizer that is configured, else of the one beside the
    model in ``path``; empty when there is none. Raises ConfigError for one that cannot be loaded.
    """
    of_model = not config.tokenizer or _is_same(config.tokenizer, config.model)
    if of_model and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return b""
    from transformers import AutoTokenizer  # costs import time

    from slipstream.tokenization.token_table import export_token_table

    source = str(path) if of_model else config.tokenizer
    revision = {} if of_model or config.revision is None else {"revision": config.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.trust_remote_code, **revision
        )
    except Exception as error:  # transformers raises many kinds, and few name what they tried
        raise ConfigError(f"tokenizer is {source!r}: it cannot be loaded: {error}") from error
    table: bytes = export_token_table(tokenizer)
    return table


def _is_same(tokenizer: str, model: str) -> bool:
    """Whether both name one directory, or one hub id."""
    return Path(tokenizer).resolve() == Path(model).resolve()


def hello(config: WorkerConfig, runner: ModelRunner, table: bytes) -> dict[str, Any]:
    """The HELLO map."""
    spec = runner.decoder.spec
    path = Path(config.model)
    load = runner.expert_load
    return {
        "vocab_size": spec.vocab_size,
        "max_seq_len": runner.max_seq_len,
        "tokens_per_block": config.tokens_per_block,
        "max_num_seqs": config.max_num_seqs,
        "max_num_tokens": config.max_num_tokens,
        "kv_groups": [
            {
                "kind": group.mask.kind,
                "window": group.mask.size,
                "num_blocks": cache.num_blocks,
                "bytes_per_block": cache.shape.bytes_per_block,
            }
            for group, cache in zip(runner.groups, runner.caches, strict=True)
        ],
        "end_ids": list(spec.end_ids),
        "pad_id": spec.pad_id,
        "wants_history": False,
        "token_table": table,
        "model_name": path.resolve().name if path.is_dir() else config.model,
        "device": str(runner.device),
        "weight_bytes": runner.decoder.weight_bytes,
        "expert_layers": list(load.layers) if load is not None else [],
        "num_experts": load.num_experts if load is not None else 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
    }
