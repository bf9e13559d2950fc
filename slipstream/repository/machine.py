# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Memory of this machine, without importing torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU; ``index`` is nvidia-smi's, memory in bytes."""

    index: int
    name: str
    total: int
    free: int
    uuid: str = ""


def list_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that nvidia-smi reports; empty without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=index,name,memory.total,memory.free,uuid"
    try:
        result = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in result.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and parts[2].isdigit() and parts[3].isdigit():
            mib = 1 << 20
            total, free = int(parts[2]) * mib, int(parts[3]) * mib
            gpus.append(Gpu(int(parts[0]), parts[1], total, free, parts[4]))
    return gpus


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA shows to a process, so that ``cuda:N`` is the N-th.

    CUDA_VISIBLE_DEVICES names them by index or by the beginning of the UUID. As in CUDA, a name
    that means no GPU ends the list, and one GPU named twice leaves none. Indices count as
    nvidia-smi's, which are CUDA's own where all GPUs are alike.
    """
    gpus = list_gpus()
    names = environment.get(VISIBLE_DEVICES)
    if names is None:
        return gpus
    visible: list[Gpu] = []
    for name in names.split(","):
        meant = [gpu for gpu in gpus if _means(name.strip(), gpu)]
        if len(meant) != 1:
            break
        if meant[0] in visible:
            return []
        visible.append(meant[0])
    return visible


def _means(name: str, gpu: Gpu) -> bool:
    if name.startswith("GPU-"):
        return gpu.uuid.startswith(name)
    number = re.match(r"\d+", name)  # CUDA, too, reads no further than the digits
    return number is not None and int(number[0]) == gpu.index


def free_host_memory() -> int:
    """Bytes that can still be allocated, within the cgroup's limit."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return free
    return min(free, max(limit - used, 0))
