# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The servers that end-to-end tests share. Each is started by the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e_recipes import DEMO, SCRIPTED, TENSORRT_LLM
from e2e_server import Server, ServerPool


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


@pytest.fixture
def scripted(servers: ServerPool) -> Server:
    """Scripted workers of many kinds."""
    return servers.get(SCRIPTED)


@pytest.fixture
def demo(servers: ServerPool) -> Server:
    """The demo checkpoint."""
    return servers.get(DEMO)


@pytest.fixture
def drop_in(servers: ServerPool) -> Server:
    """The names that clients of TensorRT-LLM's backend know."""
    return servers.get(TENSORRT_LLM)
