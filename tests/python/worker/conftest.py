# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from family_cases import CASES
from family_serving import Served
from worker_checkpoints import VARIANTS, Reference, make_model

# Threads only wait for each other on models this small, and for long when the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Makes a variant's checkpoint on first use."""
    made: dict[str, Reference] = {}

    def make(variant: str) -> Reference:
        if variant not in made:
            path = tmp_path_factory.mktemp(variant)
            model = make_model(**VARIANTS[variant])
            model.save_pretrained(path, max_shard_size="60KB" if variant == "sharded" else "5GB")
            assert (path / "model.safetensors.index.json").exists() == (variant == "sharded")
            made[variant] = Reference(path, model)
        return made[variant]

    return make


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Every case of every family in turn."""
    return Served.of(request.param, tmp_path_factory.mktemp("family"))
