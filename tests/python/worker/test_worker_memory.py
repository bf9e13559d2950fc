# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker may use: memory and cores, also inside a container."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slipstream.attention.interface import FULL, Mask
from slipstream.attention.kv_cache import KvShape
from slipstream.link import VERSION
from slipstream.models.kv_groups import Serving, pools_for_bytes, pools_for_tokens
from slipstream.worker import memory
from slipstream.worker.config import ConfigError, WorkerConfig
from slipstream.worker.startup import with_step_limits

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


SLIDING, CHUNKED = Mask("sliding", 9), Mask("chunked", 17)
# Blocks of 8 tokens: a sequence takes up to 2 + 1 of the sliding group, 3 + 1 of the chunked one.
SERVING = Serving(tokens_per_block=8, max_seq_len=400, max_num_seqs=4, max_num_tokens=20)


def test_pools_of_windows_have_what_all_slots_can_use():
    assert pools_for_tokens([FULL, SLIDING, CHUNKED], SERVING, 801) == [101, 4 * 3 + 3, 4 * 4 + 3]
    assert pools_for_tokens([FULL, SLIDING, CHUNKED], SERVING, 130) == [17, 15, 17]
    assert pools_for_tokens([FULL], SERVING, 801) == [101]


def test_a_budget_is_divided_without_a_rest():
    """The full group's block takes 10 bytes, those of the windows 20 and 40."""
    masks, sizes = [FULL, SLIDING, CHUNKED], [10, 20, 40]
    plenty = 15 * 20 + 19 * 40 + 10 * 100
    assert pools_for_bytes(masks, sizes, SERVING, plenty + 9) == [100, 15, 19]
    # Less than the chunked group could use: it gets as many blocks as the full one.
    assert pools_for_bytes(masks, sizes, SERVING, 15 * 20 + 50 * 17 + 49) == [17, 15, 17]
    assert pools_for_bytes(masks, sizes, SERVING, 70 * 11) == [11, 11, 11]


def test_windows_without_a_full_group_share_evenly_and_hold_a_sequence():
    masks = [SLIDING, CHUNKED]
    assert pools_for_bytes(masks, [20, 40], SERVING, 60 * 30 + 59) == [30, 30]
    assert SERVING.least(masks) == 4 + 2
    assert pools_for_tokens(masks, SERVING, 8) == [6, 6]
    assert pools_for_tokens(masks, SERVING, 80) == [10, 10]
    assert Serving(8, 24, 4, 20).least(masks) == 3  # no sequence is longer


def test_a_budget_too_small_for_a_window_is_refused_with_the_numbers():
    shapes = [KvShape(1, 1, 8, 2, torch.float32)]
    config = WorkerConfig(version="", frame_version=VERSION, model="m", kv_cache_bytes=5 * 128)
    with pytest.raises(ConfigError, match="leaves 640 bytes .* takes 128, and 6 are needed"):
        memory.kv_pool_blocks(config, SERVING, [CHUNKED], shapes, CPU)
    enough = config.model_copy(update={"kv_cache_bytes": 6 * 128})
    assert memory.kv_pool_blocks(enough, SERVING, [CHUNKED], shapes, CPU) == [6]


@pytest.mark.parametrize(
    ("gib", "expected"), [(None, (64, 2048)), (24, (256, 2048)), (141, (256, 8192))]
)
def test_what_a_step_holds_suits_the_device(gib, expected, monkeypatch):
    properties = SimpleNamespace(total_memory=(gib or 0) << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = CPU if gib is None else torch.device("cuda")
    config = WorkerConfig(version="", frame_version=VERSION, model="m")
    chosen = with_step_limits(config, device)
    assert (chosen.max_num_seqs, chosen.max_num_tokens) == expected
    given = config.model_copy(update={"max_num_seqs": 3, "max_num_tokens": 20})
    assert with_step_limits(given, device) == given
