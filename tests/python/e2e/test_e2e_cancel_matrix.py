# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients that leave, on every transport, at every stage, through every model.

Times are those from what the client does until Triton's statistics count the end of its request,
or until its last response arrives. docs/interface.md has the table of what is seen when.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from e2e_calls import TRANSPORTS
from e2e_leaving import (
    ENTRIES,
    STAGES,
    STAYED_TOKENS,
    Books,
    Cell,
    bystanders,
    call,
    own_fields,
    stop,
    time_until_ended,
    wait_for_all,
    wait_for_stage,
)
from e2e_metrics import wait_for
from e2e_recipes import LEFT
from e2e_server import Server, ServerPool
from e2e_timing import best_of_three, check_time

SEEN_WITHIN_S = 0.1
# By default only these; the others take minutes.
LEFT_BY_DEFAULT = {
    Cell("grpc_stream", "queued", "fused"),
    Cell("grpc_stream", "prefill", "core"),
    Cell("grpc_stream", "decode", "steps"),
    Cell("grpc_stream", "last token", "fused"),
    Cell("grpc_unary", "queued", "core"),
    Cell("grpc_unary", "prefill", "fused"),
    Cell("grpc_unary", "decode", "steps"),
    Cell("generate_stream", "queued", "steps"),
    Cell("generate_stream", "prefill", "fused"),
    Cell("generate_stream", "decode", "core"),
    Cell("generate", "decode", "fused"),
    Cell("infer", "decode", "core"),
}
STOPPED_BY_DEFAULT = {
    Cell("grpc_stream", "decode", "steps"),
    Cell("grpc_unary", "queued", "steps"),
    Cell("infer", "prefill", "core"),
    Cell("generate", "decode", "fused"),
    Cell("generate_stream", "queued", "fused"),
}


@pytest.fixture
def server(servers: ServerPool) -> Server:
    return servers.get(LEFT)


def cells(by_default: set[Cell]) -> list[object]:
    everything = [Cell(*c) for c in itertools.product(TRANSPORTS, STAGES, ENTRIES)]
    return [
        pytest.param(cell, id="-".join(cell), marks=[] if cell in by_default else pytest.mark.slow)
        for cell in everything
    ]


def check_ends(books: Books, cell: Cell, whole: bool = False) -> None:
    """The others ended as always, the one that left once: cancelled, unless it was `whole`."""
    ends = books.ends()
    stayed = {"length": cell.bystanders}
    done = {"length": cell.bystanders + 1}
    if whole:
        assert ends == done
    elif cell.stage == "last token":  # which may have come first
        assert ends in (done, stayed | {"cancelled": 1})
    else:
        assert ends == stayed | {"cancelled": 1}


def tokens_of_it(books: Books, cell: Cell) -> int:
    """How many tokens the one that left was given, once all have ended."""
    return books.moved("slipstream_generated_tokens_total") - cell.bystanders * STAYED_TOKENS


@pytest.mark.parametrize("cell", cells(LEFT_BY_DEFAULT))
@best_of_three
def test_a_client_leaves(
    server: Server, cell: Cell, record_property: Callable[[str, object], None]
) -> None:
    books = Books(server, cell.llm)
    seen = cell.when_seen()
    took = 0.0
    with bystanders(server, cell):
        wait_for_all(books, cell)
        left = call(cell.transport, server, cell.model, own_fields(cell))
        wait_for_stage(books, cell)
        if seen == "at once":
            took = time_until_ended(server, cell.model, left.leave)
            record_property("seen_ms", round(took * 1000, 1))
        else:
            left.leave()
        received = left.received
    if seen in ("first response", "never"):  # it runs when the others have ended
        name = "slipstream_requests_finished_total"
        reason = "length" if seen == "never" else "cancelled"
        others = cell.bystanders if reason == "length" else 0
        wait_for(lambda: books.moved(name, reason=reason) == others + 1, 10, "it ended")
    books.wait_for_rest()
    check_ends(books, cell, whole=seen == "never")
    tokens = tokens_of_it(books, cell)
    record_property("tokens", tokens)
    if seen == "never":
        assert tokens == cell.count
    elif seen == "first response":
        assert 1 <= tokens <= 3
    elif seen == "next response":  # two more, and one may have been on its way to the client
        assert tokens <= received + 3
    elif cell.stage in ("queued", "prefill"):
        assert tokens == 0
    check_time(took, SEEN_WITHIN_S, "seeing it")


@pytest.mark.parametrize("cell", cells(STOPPED_BY_DEFAULT))
@best_of_three
def test_a_request_is_stopped_by_its_id(
    server: Server, cell: Cell, record_property: Callable[[str, object], None]
) -> None:
    books = Books(server, cell.llm)
    with bystanders(server, cell):
        wait_for_all(books, cell)
        running = call(cell.transport, server, cell.model, own_fields(cell), "mine")
        wait_for_stage(books, cell)
        start = time.monotonic()
        answer = stop(server, cell, "mine")
        took = running.wait(10) - start
        record_property("seen_ms", round(took * 1000, 1))
        answer.wait(10)
        assert (running.error, answer.error) == ("", "")
        assert answer.received <= 1
    books.wait_for_rest()
    check_ends(books, cell)
    if cell.stage in ("queued", "prefill"):
        assert tokens_of_it(books, cell) == 0
    check_time(took, SEEN_WITHIN_S, "stopping it")
