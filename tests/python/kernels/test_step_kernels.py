# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a step begins and ends with on a GPU: reading its arrays, and handing tokens back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from slipstream.kernels.step_tokens import expand_tokens, keep_tokens
from slipstream.worker.staging import HostStep, Staging, StepShape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
ARRAYS = tuple(HostStep.__annotations__)


def fill(host: HostStep, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Fills all arrays but those of new blocks; returns copies."""
    for name in ARRAYS:
        array = getattr(host, name)
        array[:] = random.integers(-1000, 1000, array.size)
    host.new_entries[:] = -1
    return {name: getattr(host, name).copy() for name in ARRAYS}


def test_steps_are_received_in_turn_with_their_new_blocks() -> None:
    random = np.random.default_rng(0)
    largest = StepShape(5000, 300, 100, 300, 400)
    staging = Staging(largest, 3, DEVICE)
    tables = torch.full((2, 40, 10), -7, dtype=torch.int32, device=DEVICE)
    known = tables.cpu().numpy().reshape(-1).copy()
    shapes = [StepShape(1, 1, 0, 1, 2), largest, StepShape(30, 30, 0, 30, 30), largest] * 2
    # Two are under way at a time, as in the worker.
    waiting: list[tuple[StepShape, dict[str, np.ndarray]]] = []
    for number in range(len(shapes) + 1):
        if number < len(shapes):
            host = staging.begin(shapes[number])
            values = fill(host, random)
            count = shapes[number].new_blocks // 2
            entries = random.choice(800, count, replace=False)
            host.new_entries[:count] = values["new_entries"][:count] = entries
            host.new_blocks[:count] = values["new_blocks"][:count] = random.integers(0, 99, count)
            waiting.append((shapes[number], values))
        if number == 0:
            continue
        shape, values = waiting.pop(0)
        step = staging.receive(shape, tables)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(step, name).cpu().numpy(), values[name], name)
        used = values["new_entries"] >= 0
        known[values["new_entries"][used]] = values["new_blocks"][used]
        np.testing.assert_array_equal(tables.cpu().numpy().reshape(-1), known)
    assert staging.received.item() == len(shapes)


def test_tokens_go_to_their_slots_and_to_the_host() -> None:
    received = torch.tensor([6], device=DEVICE)
    arrived = torch.full((4, 2, 500), -1, dtype=torch.int32)
    arrived = arrived.pin_memory() if ON_GPU else arrived
    last = torch.zeros(600, dtype=torch.int64, device=DEVICE)
    random = np.random.default_rng(0)
    buffer = torch.from_numpy(random.integers(0, 90, (2, 500)).astype(np.int32)).to(DEVICE)
    sampled = buffer[:, :300]
    sampled[:, 3] = torch.tensor([-5, 0])
    sampled[:, 4] = torch.tensor([100, 0])
    slots = torch.from_numpy(random.permutation(600)[:300].astype(np.int32)).to(DEVICE)
    keep_tokens(sampled, slots, last, 100, received, arrived)
    if ON_GPU:
        torch.cuda.synchronize()
    assert torch.equal(arrived[1, :, :300], sampled.cpu())
    assert (arrived[[0, 2, 3]] == -1).all()
    assert (arrived[1, :, 300:] == -1).all()
    assert torch.equal(last[slots.long()], sampled[0].long().clamp(0, 99))
    assert last.count_nonzero() <= 300


def test_tokens_of_slots_and_places_of_keys() -> None:
    random = np.random.default_rng(0)
    tables = torch.from_numpy(random.integers(0, 50, (2, 9, 6)).astype(np.int32)).to(DEVICE)
    slots = torch.from_numpy(random.integers(0, 9, 400).astype(np.int32)).to(DEVICE)
    positions = torch.from_numpy(random.integers(0, 6 * 16, 400).astype(np.int32)).to(DEVICE)
    given = torch.from_numpy(random.integers(-1, 3, 400).astype(np.int32)).to(DEVICE)
    last = torch.arange(100, 109, device=DEVICE)
    tokens = given.clone()
    places = torch.zeros((2, 400), dtype=torch.int64, device=DEVICE)
    expand_tokens(tokens, slots, positions, last, tables, 16, places)
    assert torch.equal(tokens, torch.where(given < 0, slots + 100, given))
    block = tables[:, slots.long(), positions.long() // 16]
    expected = torch.where(slots == 8, -1, block * 16 + positions % 16)
    assert torch.equal(places, expected.long())
