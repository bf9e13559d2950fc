# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How much memory and how many cores this process may use, and how large the KV cache gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from slipstream.attention.interface import Mask
from slipstream.attention.kv_cache import KvShape
from slipstream.attention.preparation import Preparation
from slipstream.models.kv_groups import Serving, smallest_pools
from slipstream.models.served import ServedModel
from slipstream.worker.config import ConfigError, WorkerConfig

_CGROUP = Path("/sys/fs/cgroup")
# Share of the free memory for the KV cache if nothing is said: a GPU is the model's own, the memory
# of a host is shared with everything else.
KV_CACHE_FRACTIONS = {"cuda": 0.9, "cpu": 0.25}
# Models below this many bytes finish a layer sooner than threads meet at a barrier.
_ONE_THREAD_BYTES = 32 << 20


def kv_pool_blocks(
    config: WorkerConfig,
    serving: Serving,
    masks: Sequence[Mask],
    shapes: Sequence[KvShape],
    device: torch.device,
    reserved: int = 0,
) -> list[int]:
    """Blocks in each group's pool: the smallest that tokens, bytes or the fraction of free memory,
    those of them that are given, allow; with none a fraction of its own.

    ``reserved`` bytes of the free memory are for other things. Raises ConfigError naming the
    setting if that is too little for one sequence.
    """
    budgets = []
    if config.kv_cache_bytes:
        budgets.append((config.kv_cache_bytes, "kv_cache_bytes"))
    if config.kv_cache_fraction or not (config.kv_cache_bytes or config.kv_cache_tokens):
        budgets.append(_share_of_free_memory(config, device, reserved))
    sizes = [shape.bytes_per_block for shape in shapes]
    pools, budget, name = smallest_pools(masks, sizes, serving, config.kv_cache_tokens, budgets)
    needed = serving.least(masks)
    if min(pools) < needed:
        raise ConfigError(
            f"{name} leaves {budget} bytes for the KV cache; one block of "
            f"{serving.tokens_per_block} tokens takes {sum(sizes)}"
            + (f", and {needed} are needed" if needed > 1 else "")
        )
    return pools


def _share_of_free_memory(
    config: WorkerConfig, device: torch.device, reserved: int
) -> tuple[int, str]:
    """Bytes, and the setting that gives them."""
    fraction = config.kv_cache_fraction or KV_CACHE_FRACTIONS[device.type]
    free = free_memory(device)
    name = f"kv_cache_fraction {fraction:g}"
    if reserved:
        name += f" of {free} free bytes less {reserved} for activations"
    return int(max(free - reserved, 0) * fraction), name


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; on a CPU also within the cgroup's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _read_number(_CGROUP / "memory.max")
    used = _read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(limit - used + _reclaimable(), 0))
    return free


def _reclaimable() -> int:
    """Bytes of file cache, such as the weights just read, that the cgroup gives up on demand."""
    lines = (_CGROUP / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


class _NoAttention:
    """Stands in for a planned batch where only memory matters."""

    def __init__(self, values: int) -> None:
        self._values = values

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        return qkv.new_zeros((qkv.shape[0], self._values))


@torch.inference_mode()
def activation_bytes(model: ServedModel, max_num_tokens: int, max_num_seqs: int) -> int:
    """The most that a step of so many tokens needs on a GPU, beside weights and KV: it runs one."""
    spec, device = model.spec, model.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    tokens = torch.zeros(max_num_tokens, dtype=torch.int32, device=device)
    values = spec.num_heads * (spec.head_dim if spec.latent_dim is None else spec.latent_dim)
    hidden = model(tokens, tokens, _NoAttention(values))
    model.logits(hidden[:max_num_seqs])
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return int(peak)


def default_threads(weight_bytes: int) -> int:
    """Physical cores that this process may run on, within the cgroup's quota; 1 for tiny models."""
    if weight_bytes < _ONE_THREAD_BYTES:
        return 1
    return physical_cores()


def physical_cores() -> int:
    cpus = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota() or len(cores)))


def _siblings(cpu: int) -> str:
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return file.read_text().strip()
    except OSError:
        return str(cpu)  # no topology: every CPU counts as a core


def _quota() -> int | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None
