# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Other ways to go: killed clients, connections that are reset, stop requests, deadlines."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time

import e2e_calls
import pytest
from e2e_calls import TRANSPORTS, call
from e2e_client import Stream, prompt, question
from e2e_leaving import (
    LEFT_TOKENS,
    STAYED_TOKENS,
    TEXT,
    Books,
    Cell,
    bystanders,
    own_fields,
    time_until_ended,
    wait_for_all,
    wait_for_stage,
)
from e2e_metrics import wait_for
from e2e_recipes import LEFT
from e2e_server import Server, ServerPool, tokenizer
from e2e_timing import best_of_three, check_time

SEEN_WITHIN_S = 0.1
TIMEOUT_MS = 300
LONG = 3000
FINISHED = "slipstream_requests_finished_total"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]


@pytest.fixture
def server(servers: ServerPool) -> Server:
    return servers.get(LEFT)


@pytest.mark.parametrize("transport", TRANSPORTS)
@best_of_three
def test_a_client_is_killed(server: Server, transport: str) -> None:
    cell = Cell(transport, "decode", "core")
    books = Books(server, cell.llm)
    fields = json.dumps(own_fields(cell))
    took = 0.0
    arguments = [transport, server.grpc, server.http, cell.model, fields]
    with subprocess.Popen(
        [sys.executable, e2e_calls.__file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            with bystanders(server, cell):
                wait_for_all(books, cell)
                client.stdin.write("go\n")
                client.stdin.flush()
                wait_for_stage(books, cell)
                if cell.when_seen() == "at once":
                    took = time_until_ended(server, cell.model, client.kill)
                else:
                    client.kill()
        finally:
            client.kill()
    reason = "cancelled" if cell.when_seen() == "at once" else "length"
    wait_for(lambda: sum(books.ends().values()) == 2, 10, "both ended")
    books.wait_for_rest()
    assert books.ends() == ({"length": 2} if reason == "length" else {"length": 1, reason: 1})
    check_time(took, SEEN_WITHIN_S, "seeing it")


@pytest.mark.parametrize("entry", ["core", "fused"])
@best_of_three
def test_a_connection_is_reset(server: Server, entry: str) -> None:
    cell = Cell("generate_stream", "decode", entry)
    books = Books(server, cell.llm)
    body = json.dumps(own_fields(cell)).encode()
    host, port = server.http.split(":")
    head = f"POST /v2/models/{cell.model}/generate_stream HTTP/1.1\r\nHost: {host}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with bystanders(server, cell), socket.create_connection((host, int(port))) as connection:
        wait_for_all(books, cell)
        connection.sendall(head.encode() + body)
        wait_for_stage(books, cell)
        # Closing a socket that does not linger sends RST in place of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        took = time_until_ended(server, cell.model, connection.close)
    books.wait_for_rest()
    assert books.ends() == {"length": 1, "cancelled": 1}
    check_time(took, SEEN_WITHIN_S, "seeing it")


# Where the server tells nobody, or nobody yet, that the client has gone.
@pytest.mark.parametrize(
    "cell",
    [
        Cell("infer", "decode", "core"),
        Cell("infer", "prefill", "steps"),
        Cell("generate", "queued", "fused"),
        Cell("generate", "decode", "steps"),
        Cell("generate_stream", "queued", "core"),
        Cell("grpc_unary", "decode", "steps"),
        Cell("grpc_stream", "queued", "steps"),
    ],
    ids="-".join,
)
@best_of_three
def test_a_deadline_ends_what_nobody_knows_to_be_abandoned(server: Server, cell: Cell) -> None:
    assert cell.when_seen() in ("never", "first response")
    books = Books(server, cell.llm)
    with bystanders(server, cell):
        wait_for_all(books, cell)
        start = time.monotonic()
        left = call(cell.transport, server, cell.model, own_fields(cell, timeout_ms=TIMEOUT_MS))
        wait_for_stage(books, cell)
        left.leave()
        wait_for(lambda: books.moved(FINISHED, reason="deadline") == 1, 5, "its deadline")
        took = time.monotonic() - start
        late = took - TIMEOUT_MS / 1000
        assert late >= 0
    books.wait_for_rest()
    assert books.ends() == {"length": cell.bystanders, "deadline": 1}
    assert (
        books.moved("slipstream_generated_tokens_total")
        < cell.bystanders * STAYED_TOKENS + LEFT_TOKENS
    )
    check_time(late, SEEN_WITHIN_S, "ending it")


def test_stop_by_id_stops_every_request_of_that_id_only(scripted: Server) -> None:
    with Stream(scripted.grpc) as stream, Stream(scripted.grpc) as control:
        stream.send("paced", prompt(TEXT_IDS, LONG, streaming=True), "x")
        stream.send("paced_ensemble", question(TEXT, LONG, stream=True), "x")
        stream.send("paced_steps", question(TEXT, LONG, stream=True), "x")
        stream.send("paced", prompt(TEXT_IDS, 100, streaming=True), "y")
        seen = {"x": 0, "y": 0}
        while min(seen.values()) < 10:
            seen[stream.next().id] += 1
        stop = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
        [answer] = control.ask("paced", stop, request_id="x")
        assert not answer.error
        finals: list[str] = []
        while len(finals) < 4:
            reply = stream.next()
            assert not reply.error
            finals += [reply.id] * reply.final
        assert finals == ["x", "x", "x", "y"]
        assert stream.end() == []
        assert control.end() == []
