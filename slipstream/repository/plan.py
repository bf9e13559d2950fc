# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The memory that serving will take, before anything is allocated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from slipstream.config import SlipstreamConfig
from slipstream.errors import SlipstreamError
from slipstream.repository.checkpoint import (
    DTYPE_BYTES,
    CheckpointFacts,
    UnmeasuredError,
    read_checkpoint,
)
from slipstream.repository.machine import VISIBLE_DEVICES, free_host_memory, list_gpus, visible_gpus

# On a CPU the cache shares memory with everything else on the machine.
CPU_KV_CACHE_FRACTION = 0.25
GPU_KV_CACHE_FRACTION = 0.9


class PlanError(SlipstreamError, ValueError):
    """A configuration that cannot be served here; the message holds the arithmetic."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the model will run; ``free`` and ``total`` in bytes, the latter of a GPU alone."""

    device: str
    free: int
    total: int = 0


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """The KV cache of layers that see the same positions. ``window`` 0: they see all of them.

    ``at_once``: sequences of the greatest length that it holds.
    """

    kind: str
    window: int
    num_layers: int
    num_blocks: int
    bytes_per_block: int
    at_once: int

    @property
    def bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def name(self) -> str:
        layers = f"{self.num_layers} layer{'s' if self.num_layers != 1 else ''}"
        kinds = {"sliding": f"a window of {self.window:,}", "chunked": f"chunks of {self.window:,}"}
        return f"{layers} with {kinds.get(self.kind, 'full attention')}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic. Sizes in bytes, lengths in tokens."""

    facts: CheckpointFacts
    memory: Memory
    dtype: str
    kv_dtype: str
    weight_bytes: int
    kv_bytes_per_token: int
    tokens_per_block: int
    kv_budget: int
    budget_source: str
    groups: tuple[GroupPlan, ...]
    least_blocks: int
    max_seq_len: int
    max_num_seqs: int
    max_num_tokens: int
    step_bytes: int | None  # an estimate; None: known only once the model is loaded

    @property
    def bytes_per_block(self) -> int:
        return self.kv_bytes_per_token * self.tokens_per_block

    @property
    def num_blocks(self) -> int:
        """Of the full group, or the first."""
        return self.groups[0].num_blocks

    @property
    def kv_bytes(self) -> int:
        return sum(group.bytes for group in self.groups)

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.tokens_per_block

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + (self.step_bytes or 0)

    def rows(self) -> list[tuple[str, str]]:
        """The arithmetic as pairs of label and value, in the order it is done."""
        at_once = min(group.at_once for group in self.groups)
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
            *self._groups(),
            (
                "longest request",
                f"{self.max_seq_len:,} tokens; {at_once:,} of that length fit at once "
                f"(at most {self.max_num_seqs} run)",
            ),
            ("activations", self._activations()),
            ("total", size(self.total_bytes) + self._beside()),
            (
                "a reload",
                f"runs the old and the new instance side by side: up to "
                f"{size(2 * self.total_bytes)}; unload first to avoid it",
            ),
        ]

    def _activations(self) -> str:
        if self.step_bytes is None:
            return "known only once the model is loaded"
        return f"about {size(self.step_bytes)}, in a step of {self.max_num_tokens:,} tokens"

    def _beside(self) -> str:
        beside = [] if self.step_bytes is not None else ["activations"]
        if self.memory.device != "cpu":
            beside += ["CUDA itself", "its graphs"]
        return f", and beside it {' and '.join(beside)}" if beside else ""

    def _groups(self) -> list[tuple[str, str]]:
        rows = []
        for group in self.groups:
            tokens = group.num_blocks * self.tokens_per_block
            amount = f"{group.num_blocks:,} blocks = {tokens:,} tokens = {size(group.bytes)}"
            rows.append(("KV cache", amount))
        if len(rows) == 1:
            return rows
        named = [
            ("KV cache of", f"{group.name}: {amount}")
            for group, (_, amount) in zip(self.groups, rows, strict=True)
        ]
        return [*named, ("KV cache", size(self.kv_bytes))]

    def _per_token(self) -> str:
        facts = self.facts
        if facts.latent:
            layers = f"{facts.num_layers} layers x {facts.head_dim} latent"
            return f"{layers} x {self.kv_dtype} = {size(self.kv_bytes_per_token)}"
        return (
            f"2 x {facts.num_layers} layers x {facts.num_kv_heads} heads x {facts.head_dim} x "
            f"{self.kv_dtype} = {size(self.kv_bytes_per_token)}"
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
        UnmeasuredError: CUDA_VISIBLE_DEVICES names a part of a GPU.
        PlanError: it names a GPU that is not there.
    """
    shown = os.environ.get(VISIBLE_DEVICES)
    if config.model.device != "cpu" and (shown or "").startswith("MIG-"):
        raise UnmeasuredError(
            f"{VISIBLE_DEVICES} is {shown!r}; nvidia-smi does not list the free memory of MIG "
            "instances"
        )
    index = _gpu_index(config)
    if index is None:
        return Memory("cpu", free_host_memory())
    gpus = visible_gpus()
    if index >= len(gpus):
        raise PlanError(
            f"device is {config.model.device!r}; nvidia-smi lists {len(list_gpus())} GPUs"
            + (f", {VISIBLE_DEVICES} {shown!r} shows {len(gpus)}" if shown is not None else "")
        )
    gpu = gpus[index]
    other = f", nvidia-smi's {gpu.index}" if gpu.index != index else ""
    return Memory(f"cuda:{index} ({gpu.name}{other})", gpu.free, gpu.total)


def make_plan(config: SlipstreamConfig, memory: Memory | None = None) -> Plan:
    """Does the arithmetic for a resolved configuration; ``memory`` defaults to this machine's.

    Raises:
        UnmeasuredError: the checkpoint's size cannot be told before it is loaded, or the device's
            not at all.
        CheckpointError: the checkpoint is not supported, or damaged.
        PlanError: it does not fit, with the numbers.
    """
    memory = memory or device_memory(config)
    config = _with_step_limits(config, memory)
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
    _refuse_deterministic(config, facts, dtype, memory)
    kv_dtype = _kv_dtype(config, facts, dtype)
    max_seq_len = _max_seq_len(config, facts)
    on_gpu = memory.device != "cpu"
    step = _step_bytes(config, facts, dtype)
    # The worker, too, takes off what a step needs, on a GPU only.
    left = max(0, memory.free - weights - ((step or 0) if on_gpu else 0))
    groups, least, budget, source = _groups(
        config, facts, kv_dtype, max_seq_len, left, on_gpu=on_gpu
    )
    plan = Plan(
        facts=facts,
        memory=memory,
        dtype=dtype,
        kv_dtype=kv_dtype,
        weight_bytes=weights,
        kv_bytes_per_token=facts.kv_bytes_per_token(kv_dtype),
        tokens_per_block=config.kv_cache.tokens_per_block,
        kv_budget=budget,
        budget_source=source,
        groups=groups,
        least_blocks=least,
        max_seq_len=max_seq_len,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_tokens=config.scheduler.max_num_tokens,
        step_bytes=step,
    )
    _refuse_impossible(plan)
    return plan


def _with_step_limits(config: SlipstreamConfig, memory: Memory) -> SlipstreamConfig:
    """The same with the limits of steps that the worker will choose where they are left open."""
    from slipstream.models.step_limits import StepLimits

    scheduler = config.scheduler
    gpu_bytes = None if memory.device == "cpu" else memory.total
    limits = StepLimits.of(scheduler.max_num_seqs, scheduler.max_num_tokens, gpu_bytes)
    scheduler = scheduler.model_copy(update=asdict(limits))
    return config.model_copy(update={"scheduler": scheduler})


def _gpu_index(config: SlipstreamConfig) -> int | None:
    """The GPU that will be used; None for the CPU."""
    device = config.model.device
    if device == "cpu" or (device == "auto" and not visible_gpus()):
        return None
    return int(device.partition(":")[2] or 0)


def _serving_dtype(asked: str, facts: CheckpointFacts, memory: Memory) -> str:
    if asked != "auto":
        return asked
    if memory.device == "cpu" and facts.stored_dtype == "float16":
        return "float32"
    return facts.stored_dtype


def _refuse_deterministic(
    config: SlipstreamConfig, facts: CheckpointFacts, dtype: str, memory: Memory
) -> None:
    if not config.model.deterministic:
        return
    from slipstream.models.rows import row_obstacle  # costs torch

    device = memory.device.split()[0]
    kv_dtype, attention = config.kv_cache.kv_cache_dtype, config.model.attention_backend
    obstacle = row_obstacle(facts.spec, dtype, device, kv_dtype, attention)
    if obstacle is not None:
        raise PlanError(f"deterministic is true: {obstacle}")


def _kv_dtype(config: SlipstreamConfig, facts: CheckpointFacts, dtype: str) -> str:
    asked = config.kv_cache.kv_cache_dtype
    if asked == "auto":
        return dtype
    if facts.latent:
        raise PlanError(
            f"kv_cache_dtype is {asked!r}; {facts.name} caches latent vectors (multi-head latent "
            "attention), which are served in the model's dtype alone"
        )
    return asked


def _groups(
    config: SlipstreamConfig,
    facts: CheckpointFacts,
    kv_dtype: str,
    max_seq_len: int,
    free: int,
    *,
    on_gpu: bool,
) -> tuple[tuple[GroupPlan, ...], int, int, str]:
    """The groups as a worker makes them, what it needs of each, the budget and its name."""
    # The worker's own arithmetic; torch, which comes with it, is loaded only by who plans.
    from slipstream.models.kv_groups import Serving, kv_groups, smallest_pools

    cache, scheduler = config.kv_cache, config.scheduler
    block = cache.tokens_per_block
    serving = Serving(block, max_seq_len, scheduler.max_num_seqs, scheduler.max_num_tokens)
    groups = kv_groups(facts.spec, max_seq_len)
    masks = [group.mask for group in groups]
    per_layer = facts.kv_bytes_per_token(kv_dtype) * block // facts.num_layers
    sizes = [per_layer * len(group.layers) for group in groups]
    budgets = []
    if cache.kv_cache_bytes:
        budgets.append((cache.kv_cache_bytes, "kv_cache_bytes"))
    if cache.kv_cache_fraction or not (cache.kv_cache_bytes or cache.kv_cache_tokens):
        budgets.append(_share(config, free, on_gpu=on_gpu))
    pools, budget, source = smallest_pools(masks, sizes, serving, cache.kv_cache_tokens, budgets)
    plans = tuple(
        GroupPlan(
            mask.kind,
            mask.size,
            len(group.layers),
            blocks,
            bytes_per_block,
            serving.at_once(mask, blocks),
        )
        for mask, group, blocks, bytes_per_block in zip(masks, groups, pools, sizes, strict=True)
    )
    return plans, serving.least(masks), budget, source


def _share(config: SlipstreamConfig, free: int, *, on_gpu: bool) -> tuple[int, str]:
    """The bytes that ``kv_cache_fraction`` gives of what the weights leave, and their name."""
    automatic = GPU_KV_CACHE_FRACTION if on_gpu else CPU_KV_CACHE_FRACTION
    fraction = config.kv_cache.kv_cache_fraction or automatic
    source = f"kv_cache_fraction {fraction:g} of what the weights leave"
    if on_gpu:
        source += ", less a step, which the worker measures"
    return int(free * fraction), source


def _step_bytes(config: SlipstreamConfig, facts: CheckpointFacts, dtype: str) -> int | None:
    from slipstream.models.spec import ArchSpec  # costs torch
    from slipstream.models.step_memory import step_bytes

    if not isinstance(facts.spec, ArchSpec):
        return None
    scheduler = config.scheduler
    value_bytes = DTYPE_BYTES[dtype]
    return step_bytes(facts.spec, value_bytes, scheduler.max_num_tokens, scheduler.max_num_seqs)


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
    if min(group.num_blocks for group in plan.groups) < plan.least_blocks:
        needed = f", and {plan.least_blocks} are needed" if plan.least_blocks > 1 else ""
        raise PlanError(
            f"the KV cache holds nothing: {plan.budget_source} gives {size(plan.kv_budget)}, one "
            f"block of {plan.tokens_per_block} tokens takes {size(plan.bytes_per_block)}{needed}"
        )
