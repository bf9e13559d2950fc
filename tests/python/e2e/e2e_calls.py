# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""One request over any transport, from a client that can go away at any moment.

Run as a program it is a client of its own, to be killed: it says `ready`, sends its request when
it is told to and never ends by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grpc
from e2e_client import TIMEOUT_S, Reply, Stream, input_types, make_request, parse_response, stub

TRANSPORTS = ("grpc_unary", "grpc_stream", "infer", "generate", "generate_stream")
STREAMED = ("grpc_stream", "generate_stream")
# Triton refuses these for a decoupled model.
NOT_DECOUPLED = ("grpc_unary", "infer")


class Addresses(Protocol):
    """Where a server listens: host:port of each."""

    @property
    def grpc(self) -> str: ...
    @property
    def http(self) -> str: ...


class Call:
    """A request on its way. Whoever holds it reads, or leaves."""

    def __init__(self) -> None:
        self.received = 0  # responses that came
        self.replies: list[Reply] = []  # of gRPC
        self.error = ""  # of the transport or the response; empty: none
        self._ended = threading.Event()
        self._ended_at = 0.0

    def leave(self) -> None:
        """The client goes away."""
        raise NotImplementedError

    def wait(self, timeout_s: float) -> float:
        """Waits for the end of the response; when it came, by time.monotonic()."""
        assert self._ended.wait(timeout_s), f"no end within {timeout_s} s"
        return self._ended_at

    def _note_reply(self, reply: Reply) -> None:
        self.received += 1
        self.replies.append(reply)
        self.error = self.error or reply.error

    def _end(self, error: str = "") -> None:
        self._ended_at = time.monotonic()
        self.error = self.error or error
        self._ended.set()


class _GrpcUnary(Call):
    def __init__(self, at: Addresses, model: str, fields: Mapping[str, Any], name: str) -> None:
        super().__init__()
        request = make_request(at.grpc, model, fields, name)
        self._future = stub(at.grpc).ModelInfer.future(request, timeout=TIMEOUT_S)
        self._future.add_done_callback(self._finish)

    def leave(self) -> None:
        self._future.cancel()

    def _finish(self, future: Any) -> None:
        if not future.cancelled() and future.exception() is None:
            self._note_reply(parse_response(future.result()))
            self._end()
        else:
            self._end("cancelled" if future.cancelled() else str(future.details()))


class _GrpcStream(Call):
    def __init__(self, at: Addresses, model: str, fields: Mapping[str, Any], name: str) -> None:
        super().__init__()
        self._stream = Stream(at.grpc)
        self._stream.send(model, fields, name)
        threading.Thread(target=self._read, daemon=True).start()

    def leave(self) -> None:
        self._stream.cancel()

    def _read(self) -> None:
        try:
            while not (self.replies and self.replies[-1].final):
                self._note_reply(self._stream.next())
            self._end()
            self._stream.end()
        except grpc.RpcError as error:
            self._end(str(error))


class _Http(Call):
    def __init__(self, at: Addresses, path: str, body: Any) -> None:
        super().__init__()
        host, port = at.http.split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        self._connection.connect()
        self._socket: socket.socket = self._connection.sock
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        threading.Thread(target=self._read, daemon=True).start()

    def leave(self) -> None:
        with contextlib.suppress(OSError):  # the response may have ended, and the connection
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        error = ""
        try:
            response = self._connection.getresponse()
            for line in response:
                self.received += bool(line.strip())
                error += line.decode() if response.status != 200 or b'"error"' in line else ""
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as gone:
            error = repr(gone)  # what http.client raises when the socket is closed meanwhile
        self._connection.close()
        self._end(error)


def _json_inputs(at: Addresses, model: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    types = input_types(at.grpc, model)
    rows = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    return [
        {"name": name, "datatype": types[name], "shape": [1, len(row)], "data": row}
        for name, row in rows.items()
    ]


def call(
    transport: str, at: Addresses, model: str, fields: Mapping[str, Any], name: str = ""
) -> Call:
    """Sends a request. `name` is its id."""
    if transport == "grpc_unary":
        return _GrpcUnary(at, model, fields, name)
    if transport == "grpc_stream":
        return _GrpcStream(at, model, fields, name)
    ident = {"id": name} if name else {}
    path = f"/v2/models/{model}/{transport}"
    if transport == "infer":
        return _Http(at, path, ident | {"inputs": _json_inputs(at, model, fields)})
    return _Http(at, path, ident | dict(fields))


class _Given:
    def __init__(self, grpc_url: str, http_url: str) -> None:
        self.grpc, self.http = grpc_url, http_url


def main(arguments: Sequence[str]) -> None:
    """TRANSPORT GRPC_ADDRESS HTTP_ADDRESS MODEL FIELDS, the last as JSON."""
    transport, grpc_url, http_url, model, fields = arguments
    at = _Given(grpc_url, http_url)
    input_types(at.grpc, model)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    held = call(transport, at, model, json.loads(fields))
    sys.stdin.readline()
    held.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
