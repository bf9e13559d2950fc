# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The mixed load of a soak: clients that ask every kind of request until they are told to stop."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass

import grpc
from e2e_client import Stream, generate, generate_stream, infer, prompt, question
from e2e_server import Server, tokenizer
from e2e_streams import TEXTS, kinds, make_job

COUNT = 24  # tokens of a request
MAX_LOGGED_ERRORS = 5


@dataclass(frozen=True)
class Answer:
    """One request: its way, seconds from the start of the load to its end, and its latencies."""

    way: str
    at: float
    first_s: float
    total_s: float


@dataclass(frozen=True)
class Targets:
    """Models of one server; an empty name leaves the ways out that need it."""

    llm: str = "llm"
    unary: str = ""  # not decoupled
    paced: str = ""  # slow enough for cancelled streams


class Load:
    """So many clients, each with a thread and a seed of its own."""

    def __init__(self, server: Server, targets: Targets, clients: int, zero: float) -> None:
        self.answers: list[Answer] = []
        self.unexpected: list[str] = []
        self.num_errors = 0
        self.faults_since = float("inf")  # errors of requests are expected from here on
        self._server, self._targets, self._zero = server, targets, zero
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every client finish its request."""
        self._ended.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request does not end"

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        ways = ["grpc_stream", "http", "http_stream", "bad"]
        ways += ["grpc_unary"] if self._targets.unary else []
        for turn in itertools.count():
            if self._ended.is_set():
                return
            way = draw.choice(ways)
            if self._targets.paced and number == 0 and turn % 10 == 9:
                way = "cancel"
            start = time.monotonic()
            try:
                first = getattr(self, f"_{way}")(draw)
            except Exception as error:  # whatever it is, it is counted and reported
                self._note(f"{way}: {error!r}"[:500])
                time.sleep(0.05)  # a model that restarts refuses at once
                continue
            now = time.monotonic()
            answer = Answer(way, now - self._zero, first - start, now - start)
            with self._lock:
                self.answers.append(answer)

    def _note(self, text: str) -> None:
        with self._lock:
            self.num_errors += 1
            is_expected = time.monotonic() >= self.faults_since
            if not is_expected and len(self.unexpected) < MAX_LOGGED_ERRORS:
                self.unexpected.append(text)

    def _grpc_stream(self, draw: random.Random) -> float:
        fields = draw.choice(kinds("the", draw.randrange(1000)))
        if draw.random() < 0.2:
            fields = fields | {"bad_words": ["fox"]}
        job = make_job(self._targets.llm, False, draw.choice(TEXTS), fields)
        with Stream(self._server.grpc) as stream:
            stream.send(job.model, job.fields | {"max_tokens": COUNT})
            replies = [stream.next()]
            first = time.monotonic()
            if not replies[0].final:
                replies += stream.until_final()
        errors = [reply.error for reply in replies if reply.error]
        if errors:
            raise RuntimeError(errors[0])
        return first

    def _grpc_unary(self, draw: random.Random) -> float:
        ids = tokenizer()(draw.choice(TEXTS))["input_ids"]
        infer(self._server.grpc, self._targets.unary, prompt(ids, COUNT))
        return time.monotonic()

    def _http(self, draw: random.Random) -> float:
        status, body = generate(
            self._server.http,
            "ensemble",
            question(draw.choice(TEXTS), COUNT, temperature=1.1, seed=draw.randrange(1000)),
        )
        if status != 200:
            raise RuntimeError(str(body))
        return time.monotonic()

    def _http_stream(self, draw: random.Random) -> float:
        body = question(draw.choice(TEXTS), COUNT, stream=True)
        events = generate_stream(self._server.http, "ensemble", body)
        replies = [next(events)]
        first = time.monotonic()
        replies += events
        errors = [reply["error"] for reply in replies if "error" in reply]
        if errors:
            raise RuntimeError(errors[0])
        return first

    def _bad(self, draw: random.Random) -> float:
        wrong = draw.choice([{"top_p": 2.0}, {"temperature": -2.0}, {"max_tokens": -3}])
        status, body = generate(
            self._server.http, "ensemble", question(draw.choice(TEXTS), COUNT) | wrong
        )
        if status == 200:
            raise RuntimeError(f"served: {wrong}: {body}")
        return time.monotonic()

    def _cancel(self, draw: random.Random) -> float:
        ids = tokenizer()(draw.choice(TEXTS))["input_ids"]
        stream = Stream(self._server.grpc)
        stream.send(self._targets.paced, prompt(ids, 3000, streaming=True))
        reply = stream.next()
        first = time.monotonic()
        stream.cancel()
        if reply.error:
            raise RuntimeError(reply.error)
        try:
            stream.end()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:  # type: ignore[attr-defined]
                raise
        return first
