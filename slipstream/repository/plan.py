# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The memory that serving will take, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.config import SlipstreamConfig
from slipstream.errors import SlipstreamError
from slipstream.repository.checkpoint import CheckpointFacts, read_checkpoint
from slipstream.repository.machine import free_host_memory, list_gpus

# On a CPU the cache shares memory with everything else on the machine.
CPU_KV_CACHE_FRACTION = 0.25
GPU_KV_CACHE_FRACTION = 0.9


class PlanError(SlipstreamError, ValueError):
    """A configuration that cannot be served here; the message holds the arithmetic."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the model will run; ``free`` in bytes."""

    device: str
    free: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic. Sizes in bytes, lengths in tokens."""

    facts: CheckpointFacts
    memory: Memory
    dtype: str
    weight_bytes: int
    kv_bytes_per_token: int
    tokens_per_block: int
    kv_budget: int
    budget_source: str
    num_blocks: int
    max_seq_len: int
    max_num_seqs: int

    @property
    def bytes_per_block(self) -> int:
        return self.kv_bytes_per_token * self.tokens_per_block

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.tokens_per_block

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes

    def rows(self) -> list[tuple[str, str]]:
        """The arithmetic as pairs of label and value, in the order it is done."""
        full = self.kv_tokens // self.max_seq_len
        return [
            ("model", self.facts.name),
            ("device", f"{self.memory.device}, {size(self.memory.free)} free"),
            ("weights", f"{self.facts.parameters:,} x {self.dtype} = {size(self.weight_bytes)}"),
            ("KV cache per token", self._per_token()),
            (
                "KV cache per block",
                f"{self.tokens_per_block} tokens = {size(self.bytes_per_block)}",
            ),
            ("KV cache budget", f"{size(self.kv_budget)} ({self.budget_source})"),
            (
                "KV cache",
                f"{self.num_blocks:,} blocks = {self.kv_tokens:,} tokens = {size(self.kv_bytes)}",
            ),
            (
                "longest request",
                f"{self.max_seq_len:,} tokens; {full:,} of that length fit at once "
                f"(at most {self.max_num_seqs} run)",
            ),
            ("total", size(self.total_bytes)),
            (
                "a reload",
                f"runs the old and the new instance side by side: up to "
                f"{size(2 * self.total_bytes)}; unload first to avoid it",
            ),
        ]

    def _per_token(self) -> str:
        facts = self.facts
        if facts.latent:
            layers = f"{facts.num_layers} layers x {facts.head_dim} latent"
            return f"{layers} x {self.dtype} = {size(self.kv_bytes_per_token)}"
        return (
            f"2 x {facts.num_layers} layers x {facts.num_kv_heads} heads x {facts.head_dim} x "
            f"{self.dtype} = {size(self.kv_bytes_per_token)}"
        )


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def device_memory(config: SlipstreamConfig) -> Memory:
    """The device that the configuration means on this machine.

    Raises:
        PlanError: it names a GPU that is not there.
    """
    index = _gpu_index(config)
    if index is None:
        return Memory("cpu", free_host_memory())
    gpus = {gpu.index: gpu for gpu in list_gpus()}
    if index not in gpus:
        raise PlanError(f"device is {config.model.device!r}; nvidia-smi lists {len(gpus)} GPUs")
    return Memory(f"cuda:{index} ({gpus[index].name})", gpus[index].free)


def make_plan(config: SlipstreamConfig, memory: Memory | None = None) -> Plan:
    """Does the arithmetic for a resolved configuration; ``memory`` defaults to this machine's.

    Raises:
        UnmeasuredError: the checkpoint's size cannot be told before it is loaded.
        CheckpointError: the checkpoint is not supported, or damaged.
        PlanError: it does not fit, with the numbers.
    """
    memory = memory or device_memory(config)
    model = config.model
    facts = read_checkpoint(
        model.model,
        model.revision,
        impl=model.model_impl,
        trust_remote_code=model.trust_remote_code,
    )
    dtype = _serving_dtype(config.model.dtype, facts, memory)
    weights = facts.weight_bytes(dtype)
    if weights >= memory.free:
        raise PlanError(
            f"{facts.name} does not fit: weights take {facts.parameters:,} x {dtype} = "
            f"{size(weights)}, {memory.device} has {size(memory.free)} free"
        )
    per_token = facts.kv_bytes_per_token(dtype)
    block = config.kv_cache.tokens_per_block
    budget, source = _budget(config, memory.free - weights, per_token)
    # Tokens are rounded up to whole blocks, bytes down.
    blocks = (
        -(-budget // (per_token * block))
        if source == "kv_cache_tokens"
        else (budget // (per_token * block))
    )
    plan = Plan(
        facts=facts,
        memory=memory,
        dtype=dtype,
        weight_bytes=weights,
        kv_bytes_per_token=per_token,
        tokens_per_block=block,
        kv_budget=budget,
        budget_source=source,
        num_blocks=blocks,
        max_seq_len=_max_seq_len(config, facts),
        max_num_seqs=config.scheduler.max_num_seqs,
    )
    _refuse_impossible(plan)
    return plan


def _gpu_index(config: SlipstreamConfig) -> int | None:
    """The GPU that will be used; None for the CPU."""
    device = config.model.device
    if device == "cpu" or (device == "auto" and not list_gpus()):
        return None
    return int(device.partition(":")[2] or 0)


def _serving_dtype(asked: str, facts: CheckpointFacts, memory: Memory) -> str:
    if asked != "auto":
        return asked
    if memory.device == "cpu" and facts.stored_dtype == "float16":
        return "float32"
    return facts.stored_dtype


def _budget(config: SlipstreamConfig, free: int, per_token: int) -> tuple[int, str]:
    cache = config.kv_cache
    if cache.kv_cache_tokens:
        return cache.kv_cache_tokens * per_token, "kv_cache_tokens"
    if cache.kv_cache_bytes:
        return cache.kv_cache_bytes, "kv_cache_bytes"
    automatic = CPU_KV_CACHE_FRACTION if _gpu_index(config) is None else GPU_KV_CACHE_FRACTION
    fraction = cache.kv_cache_fraction or automatic
    return int(free * fraction), f"kv_cache_fraction {fraction:g} of what the weights leave"


def _max_seq_len(config: SlipstreamConfig, facts: CheckpointFacts) -> int:
    asked = config.model.max_seq_len
    if asked > facts.max_seq_len:
        raise PlanError(f"max_seq_len is {asked}; the checkpoint's limit is {facts.max_seq_len}")
    return asked or facts.max_seq_len


def _refuse_impossible(plan: Plan) -> None:
    left = plan.memory.free - plan.weight_bytes
    if plan.kv_bytes > left:
        raise PlanError(
            f"the KV cache does not fit: {plan.budget_source} asks for {size(plan.kv_bytes)}; "
            f"{plan.memory.device} has {size(plan.memory.free)} free, less weights of "
            f"{size(plan.weight_bytes)} leaves {size(left)}"
        )
    if plan.num_blocks < 1:
        raise PlanError(
            f"the KV cache holds nothing: {plan.budget_source} gives {size(plan.kv_budget)}, one "
            f"block of {plan.tokens_per_block} tokens takes {size(plan.bytes_per_block)}"
        )
