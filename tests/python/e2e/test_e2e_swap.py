# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Models that are replaced under load, and servers that are killed."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from e2e_client import Stream, ask, load, prompt, question, unload
from e2e_metrics import wait_for
from e2e_recipes import DRAINED
from e2e_server import Server, ServerPool

LOG = logging.getLogger(__name__)


def test_a_new_version_takes_over_under_load_without_a_failed_request(scripted: Server) -> None:
    """Requests go on while version 2, then 3, is loaded beside the one that serves."""
    load(scripted.grpc, "leaving")
    load(scripted.grpc, "leaving_ensemble")
    ended = threading.Event()

    errors: list[str] = []

    def keep_asking(number: int) -> None:
        while not ended.is_set():
            if number % 2:
                replies = ask(scripted.grpc, "leaving_ensemble", question("a fox", 8, stream=True))
            else:
                replies = ask(scripted.grpc, "leaving", prompt([5, 6], 8, streaming=True))
            errors.append(replies[-1].error)

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(6)]
        try:
            for version in (2, 3):
                enough = len(errors) + 12
                wait_for(lambda enough=enough: len(errors) >= enough, 20, "requests are answered")
                (scripted.repository / "leaving" / str(version)).mkdir()
                load(scripted.grpc, "leaving")
                assert scripted.is_ready(f"leaving/versions/{version}")
            enough = len(errors) + 12
            wait_for(lambda: len(errors) >= enough, 20, "requests are answered")
        finally:
            ended.set()
        for future in asking:
            future.result()
    assert set(errors) == {""}
    assert not scripted.is_ready("leaving/versions/1")
    unload(scripted.grpc, "leaving_ensemble")
    unload(scripted.grpc, "leaving")
    wait_for(lambda: not scripted.is_ready("leaving"), 10, "it is unloaded")
    for version in (2, 3):
        (scripted.repository / "leaving" / str(version)).rmdir()


# Every model's threads touch arenas of the allocator that are kept, some 2 MiB a cycle at first.
@pytest.mark.parametrize(
    ("warm_up", "cycles", "limit_mib"),
    [(3, 10, 48), pytest.param(30, 100, 16, marks=pytest.mark.slow)],
)
def test_loading_and_unloading_leaves_nothing_behind(
    scripted: Server, warm_up: int, cycles: int, limit_mib: int
) -> None:
    """With failed loads between, and requests to another model all the time, which never fail."""
    process = psutil.Process(scripted.process.pid)
    ended = threading.Event()
    gaps: list[float] = []

    def keep_asking() -> None:
        with Stream(scripted.grpc) as stream:
            while not ended.is_set():
                stream.send("paced", prompt([5, 6], 50, streaming=True))
                last, final = time.monotonic(), False
                while not final:
                    reply = stream.next()
                    assert not reply.error
                    gaps.append(time.monotonic() - last)
                    last, final = time.monotonic(), reply.final

    def cycle() -> None:
        load(scripted.grpc, "leaving")
        assert ask(scripted.grpc, "leaving", prompt([9], 2))[0].ids() == [9, 9, 9]
        with pytest.raises(grpc.RpcError):
            load(scripted.grpc, "unstartable")
        unload(scripted.grpc, "leaving")
        wait_for(lambda: scripted.state_of("leaving")[0] == "UNAVAILABLE", 10, "it is unloaded")

    def held() -> tuple[int, int, int]:
        return process.num_threads(), process.num_fds(), len(list(Path("/dev/shm").iterdir()))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            for _ in range(warm_up):
                cycle()
            before, rss = held(), process.memory_info().rss
            for _ in range(cycles):
                cycle()
            after, grown = held(), process.memory_info().rss - rss
        finally:
            ended.set()
        asking.result()
    LOG.info(
        "%d cycles: threads, descriptors, /dev/shm %s to %s; %d KiB grown; another model's "
        "longest gap between tokens %.0f ms", cycles, before, after, grown >> 10, max(gaps) * 1e3,
    )  # fmt: skip
    for mine, theirs, slack in zip(after, before, (2, 4, 0), strict=True):
        assert mine - theirs <= slack
    assert grown < limit_mib << 20
    assert max(gaps) < 1


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_server_leaves_nothing_behind(servers: ServerPool, times: int) -> None:
    shm = set(Path("/dev/shm").iterdir())
    for _ in range(times):
        with servers.own(DRAINED) as server:
            assert not ask(server.grpc, "ensemble", question("a fox", 2))[-1].error
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert children
            server.process.kill()
            server.process.wait()
            _, alive = psutil.wait_procs(children, 10)
            assert alive == []
    assert set(Path("/dev/shm").iterdir()) - shm == set()
