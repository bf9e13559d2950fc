# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The load of a mixture's experts at /metrics: exact, and never falling."""

from __future__ import annotations

import pytest
from e2e_client import ask, joined_ids, prompt
from e2e_metrics import Metrics, wait_for
from e2e_recipes import MIXTURE
from e2e_server import Server, ServerPool, tokenizer

LAYERS, EXPERTS, CHOSEN = 6, 8, 2
COUNT = 24


def tokens_of(metrics: Metrics, layer: int) -> list[float]:
    name = "slipstream_moe_expert_tokens_total"
    return [
        metrics.value(name, model="llm", layer=str(layer), expert=str(expert))
        for expert in range(EXPERTS)
    ]


def wait_for_computed(server: Server, positions: int, sampled: int) -> list[list[float]]:
    """Waits until every layer has computed so many positions, the last one only those that are
    sampled from; its tokens by expert."""

    def computed() -> list[list[float]]:
        metrics = server.metrics()
        return [tokens_of(metrics, layer) for layer in range(LAYERS)]

    wanted = [CHOSEN * positions] * (LAYERS - 1) + [CHOSEN * sampled]
    wait_for(lambda: [sum(row) for row in computed()] == wanted, 5, f"{positions} positions")
    server.settled_metrics("llm")
    return computed()


def test_tokens_of_experts_over_a_death_of_the_worker(servers: ServerPool) -> None:
    ids = tokenizer()("Once upon a time there was a fox")["input_ids"]
    fields = prompt(ids, COUNT, min_tokens=COUNT, streaming=True)
    positions = len(ids) + COUNT - 1  # the last token is not computed
    with servers.own(MIXTURE) as server:
        metrics = server.metrics()
        assert metrics.types["slipstream_moe_expert_tokens_total"] == "counter"
        assert metrics.types["slipstream_moe_expert_imbalance"] == "gauge"
        assert [tokens_of(metrics, layer) for layer in range(LAYERS)] == [[0] * EXPERTS] * LAYERS
        assert len(metrics.label_sets("slipstream_moe_expert_tokens_total", "llm")) == 48
        first = joined_ids(ask(server.grpc, "llm", fields))
        before = wait_for_computed(server, positions, COUNT)
        metrics = server.metrics()
        for layer, row in enumerate(before):
            uneven = metrics.value("slipstream_moe_expert_imbalance", model="llm", layer=str(layer))
            assert uneven == pytest.approx(max(row) / (sum(row) / EXPERTS), rel=1e-4)
            assert uneven > 1
        [worker] = server.workers()
        worker.kill()
        wait_for(
            lambda: server.metrics().value("slipstream_worker_restarts_total", model="llm") == 1,
            5,
            "the death is seen",
        )
        # The new worker's first step is a trial of one token.
        trial = wait_for_computed(server, positions + 1, COUNT + 1)
        # Nothing is cached in it: the same tokens, computed by the same experts.
        assert joined_ids(ask(server.grpc, "llm", fields)) == first
        after = wait_for_computed(server, 2 * positions + 1, 2 * COUNT + 1)
        assert after == [
            [tried + tokens for tried, tokens in zip(*rows, strict=True)]
            for rows in zip(trial, before, strict=True)
        ]
