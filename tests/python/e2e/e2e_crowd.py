# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections to one server, each a TCP connection of its own, in another process.

Run as a program it holds the connections: it reads commands as lines of JSON, and answers each
with one. One process of its own keeps their descriptors and their memory away from the tests.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import grpc
from e2e_client import Reply, make_request, parse_response
from tritonclient.grpc import service_pb2_grpc

TIMEOUT_S = 60.0
AT_ONCE = 256  # connections being opened: no more than the server's backlog holds
NO_ANSWER = "no answer:"


@dataclass
class Outcome:
    """What one request on one connection came to."""

    seconds: float  # from sending to the last response
    responses: int = 0
    text: str = ""
    error: str = ""
    surplus: int = 0  # what came after the last response


class Connection(Protocol):
    """One connection, which serves one request after the other."""

    async def open(self) -> None: ...
    async def ask(self, model: str, fields: Mapping[str, Any]) -> Outcome: ...
    async def close(self) -> None: ...


class GrpcConnection:
    """A channel that shares its connection with no other one."""

    def __init__(self, address: str, control: str) -> None:
        self._control = control
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(address, options=own)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def open(self) -> None:
        await self._channel.channel_ready()

    async def ask(self, model: str, fields: Mapping[str, Any]) -> Outcome:
        request = make_request(self._control, model, fields, "one")
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        start = time.monotonic()
        call = self._stub.ModelStreamInfer(timeout=TIMEOUT_S)
        await call.write(request)
        outcome, reply = Outcome(0), Reply("", {}, "", False)
        while not reply.final:
            response = await call.read()
            reply = parse_response(response.infer_response, response.error_message)
            outcome.responses += 1
            outcome.text += reply.text()
            outcome.error += reply.error
        outcome.seconds = time.monotonic() - start
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            outcome.surplus += 1
        return outcome

    async def close(self) -> None:
        await self._channel.close()


class HttpConnection:
    """A socket that is kept alive."""

    def __init__(self, address: str, control: str) -> None:
        self._host, port = address.split(":")
        self._port = int(port)

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def ask(self, model: str, fields: Mapping[str, Any]) -> Outcome:
        body = json.dumps(dict(fields)).encode()
        way = "generate_stream" if fields.get("stream") else "generate"
        head = f"POST /v2/models/{model}/{way} HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        start = time.monotonic()
        self._writer.write(head.encode() + body)
        outcome = await asyncio.wait_for(self._read_response(), TIMEOUT_S)
        outcome.seconds = time.monotonic() - start
        return outcome

    async def _read_response(self) -> Outcome:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        outcome, headers = Outcome(0), {}
        for line in head.splitlines()[1:-1]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            events = [await self._reader.readexactly(int(headers["content-length"]))]
        else:
            events = [event async for event in self._chunks()]
        for event in b"".join(events).decode().splitlines():
            if event:
                answer = json.loads(event.removeprefix("data: "))
                outcome.responses += 1
                outcome.text += answer.get("text_output", "")
                outcome.error += answer.get("error", "")
        return outcome

    async def _chunks(self) -> Any:
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()

    async def close(self) -> None:
        self._writer.close()
        assert await self._reader.read() == b"", "a response that nobody waited for"


KINDS = {"grpc": GrpcConnection, "http": HttpConnection}


class Holder:
    """The connections, and what the commands do with them."""

    def __init__(self, kind: str, address: str, control: str) -> None:
        self._kind, self._address, self._control = KINDS[kind], address, control
        self._connections: list[Connection] = []

    async def open(self, count: int) -> float:
        """Opens so many; the seconds it took."""
        start = time.monotonic()
        gate = asyncio.Semaphore(AT_ONCE)
        made = [self._kind(self._address, self._control) for _ in range(count)]

        async def open_one(connection: Connection) -> None:
            async with gate:
                await asyncio.wait_for(connection.open(), TIMEOUT_S)

        await asyncio.gather(*(open_one(connection) for connection in made))
        self._connections += made
        return time.monotonic() - start

    async def ask(self, model: str, fields: Mapping[str, Any], at: Sequence[int]) -> list[Any]:
        """One request on each of the connections named, all at once."""
        asking = [self._answer(self._connections[i], model, fields) for i in at]
        return [vars(outcome) for outcome in await asyncio.gather(*asking)]

    async def _answer(
        self, connection: Connection, model: str, fields: Mapping[str, Any]
    ) -> Outcome:
        try:
            return await connection.ask(model, fields)
        except (TimeoutError, asyncio.TimeoutError, EOFError, grpc.RpcError) as failure:
            return Outcome(0, error=f"{NO_ANSWER} {failure!r}")

    async def close(self) -> int:
        for connection in self._connections:
            await connection.close()
        count = len(self._connections)
        self._connections.clear()
        return count


async def hold(holder: Holder) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(holder, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Crowd:
    """Connections of one kind, held by a process of their own. Close it, also after a failure."""

    def __init__(self, kind: str, address: str, control: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, address, control],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if error is not None:
            self._process.kill()
        assert self._process.wait(TIMEOUT_S) == 0 or error is not None

    def start(self, do: str, **arguments: Any) -> None:
        """Sends a command; `result` waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process of the connections has ended"
        return json.loads(line)

    def open(self, count: int) -> float:
        self.start("open", count=count)
        return float(self.result())

    def start_asking(self, model: str, fields: Mapping[str, Any], at: Sequence[int]) -> None:
        self.start("ask", model=model, fields=fields, at=list(at))

    def outcomes(self) -> list[Outcome]:
        return [Outcome(**found) for found in self.result()]

    def ask(self, model: str, fields: Mapping[str, Any], at: Sequence[int]) -> list[Outcome]:
        self.start_asking(model, fields, at)
        return self.outcomes()

    def close(self) -> int:
        self.start("close")
        return int(self.result())


def raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise_descriptor_limit()
    asyncio.run(hold(Holder(*sys.argv[1:])))
