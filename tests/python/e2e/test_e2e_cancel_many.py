# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Very many clients that leave, over all transports at once, at any moment."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from e2e_calls import TRANSPORTS, call
from e2e_client import joined_ids, prompt
from e2e_leaving import ENTRIES, TEXT, WORDS, Books, Cell, fields, stop
from e2e_recipes import CROWDED
from e2e_server import Server, ServerPool, tokenizer

DEPARTURES = 10_000
CLIENTS = 32  # at once, of which 16 are served by each `llm`
WAYS = ("leaves", "leaves", "leaves", "stops", "has a deadline")
MAX_STAY_S = 0.8
MAX_TOKENS = 20
STAYED = 60  # tokens of the one that stays
MAX_GROWTH_MIB = 16
TEXT_IDS = tokenizer()(TEXT)["input_ids"]


class Crowd:
    """Clients that come and leave until so many have left."""

    def __init__(self, server: Server, departures: int) -> None:
        self.problems: list[str] = []
        self.left: Counter[tuple[str, str]] = Counter()  # by way and transport
        self.bystanders = 0
        self._server = server
        self._lock = threading.Lock()
        self._remaining = departures

    def run(self) -> None:
        done = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            stays = pool.submit(self._stay, done)
            for visits in [pool.submit(self._come, seed) for seed in range(CLIENTS)]:
                visits.result()
            done.set()
            stays.result()

    def _stay(self, done: threading.Event) -> None:
        """A stream that must not notice anything, again and again."""
        while not done.is_set():
            stayed = call(
                "grpc_stream", self._server, "llm", prompt(TEXT_IDS, STAYED, streaming=True)
            )
            stayed.wait(60)
            ids = joined_ids(stayed.replies)
            if stayed.error or ids != [TEXT_IDS[i % len(TEXT_IDS)] for i in range(STAYED)]:
                self.problems.append(f"bystander: {stayed.error} {ids}")
            self.bystanders += 1

    def _come(self, seed: int) -> None:
        draw = random.Random(seed)
        while self._take():
            self._visit(draw)

    def _take(self) -> bool:
        with self._lock:
            self._remaining -= 1
            return self._remaining >= 0

    def _visit(self, draw: random.Random) -> None:
        way = draw.choice(WAYS)
        cell = Cell(draw.choice(TRANSPORTS), "decode", draw.choice(ENTRIES))
        text = " ".join(draw.choices(WORDS, k=draw.choice((4, 12, 60))))
        more = {"timeout_ms": draw.randint(1, 400)} if way == "has a deadline" else {}
        count = draw.randint(1, MAX_TOKENS)
        name = f"visit {draw.random()}"
        visit = call(
            cell.transport, self._server, cell.model, fields(cell, text, count, **more), name
        )
        time.sleep(draw.random() * MAX_STAY_S)
        if way == "leaves":
            visit.leave()
        elif way == "stops":
            stopped = stop(self._server, cell, name)
            stopped.wait(20)
            visit.wait(20)
            if stopped.error or visit.error:
                self.problems.append(f"{cell}: {stopped.error} {visit.error}")
        else:
            visit.wait(20)
            if visit.error and "deadline" not in visit.error:
                self.problems.append(f"{cell}: {visit.error}")
        with self._lock:
            self.left[way, cell.transport] += 1


def resident_mib(server: Server) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss / 2**20)


def let_many_leave(
    server: Server, departures: int, record_property: Callable[[str, object], None]
) -> None:
    Crowd(server, departures // 10).run()  # what grows with use has grown
    books = [Books(server, llm) for llm in ("llm", "unary")]
    before = resident_mib(server)
    crowd = Crowd(server, departures)
    start = time.monotonic()
    crowd.run()
    took = time.monotonic() - start
    for book in books:
        book.wait_for_rest()
    assert crowd.problems == []
    assert sum(crowd.left.values()) == departures
    assert crowd.bystanders > 0
    ends = sum((Counter(book.ends()) for book in books), Counter())
    grown = resident_mib(server) - before
    record_property("ends", dict(ends))
    record_property("left", dict(crowd.left))
    record_property("bystanders", crowd.bystanders)
    record_property("seconds", round(took))
    record_property("grown_mib", round(grown, 1))
    # A request whose client has gone before it was handed over was never accepted.
    assert sum(book.moved("slipstream_requests_accepted_total") for book in books) == ends.total()
    assert ends["cancelled"] > departures / 4
    assert ends["deadline"] > departures / 20
    assert set(ends) == {"cancelled", "deadline", "length"}
    assert grown < MAX_GROWTH_MIB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_clients_leave_at_any_moment(
    servers: ServerPool, record_property: Callable[[str, object], None]
) -> None:
    # tritonserver 2.51 at times keeps a model loaded whose gRPC stream was cancelled, although the
    # backend has released all of its requests. Such a server does not stop as others do.
    with servers.own(CROWDED) as server:
        let_many_leave(server, DEPARTURES, record_property)
