# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker may use: memory and cores, also inside a container."""

from __future__ import annotations

import pytest
import torch

from slipstream.worker import memory

CPU = torch.device("cpu")


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A control group of our own making; no files at first, as without cgroup v2."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_free_memory_is_bounded_by_the_cgroup(cgroup):
    machine = memory.free_memory(CPU)
    assert machine > 64 << 20
    (cgroup / "memory.max").write_text(f"{20 << 20}\n")
    (cgroup / "memory.current").write_text(f"{15 << 20}\n")
    (cgroup / "memory.stat").write_text(f"anon 7\ninactive_file {2 << 20}\nactive_file 9\n")
    assert memory.free_memory(CPU) == 7 << 20
    (cgroup / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) > 64 << 20


def test_threads_follow_affinity_topology_quota_and_model(cgroup, monkeypatch):
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda pid: {0, 1, 4, 5, 6})
    monkeypatch.setattr(memory, "_siblings", lambda cpu: f"{cpu % 4},{cpu % 4 + 4}")
    assert memory.default_threads(1 << 30) == 3  # cores 0, 1 and 2
    (cgroup / "cpu.max").write_text("250000 100000\n")
    assert memory.default_threads(1 << 30) == 2
    (cgroup / "cpu.max").write_text("50000 100000\n")
    assert memory.default_threads(1 << 30) == 1
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert memory.default_threads(1 << 30) == 3
    assert memory.default_threads(16 << 20) == 1
