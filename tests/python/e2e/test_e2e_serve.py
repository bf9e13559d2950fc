# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""`slipstream serve` as a process: how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml
from e2e_client import Stream, ask, ending, joined_text, question
from e2e_metrics import wait_for
from e2e_server import END_ID, HOST, VOCAB, decode, tokenizer

from slipstream.demo import demo_model_path
from slipstream.server import choose_ports
from slipstream.tokenization import export_token_table

TEXT = "Once upon a time there was a fox"
TEXT_IDS = tokenizer()(TEXT)["input_ids"]
COUNT = 150


@dataclass(frozen=True)
class Serving:
    """A running `slipstream serve`, and what it wrote when it was ready."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.facts['grpc']}"


@contextmanager
def serving(folder: Path, worker: dict[str, Any], ensemble: str = "fused") -> Iterator[Serving]:
    ready, config = folder / "ready.json", folder / "slipstream.yaml"
    sections = {
        "model": {"tokenizer": str(demo_model_path())},
        "worker": worker,
        "repository": {"ensemble": ensemble},
    }
    config.write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "slipstream.cli", "serve", "--config", str(config)]
    command += ["--ready-file", str(ready), "--log", str(folder / "server.log")]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    try:
        wait_for(lambda: ready.exists() or process.poll() is not None, 120, "it is ready")
        assert ready.exists(), (folder / "serve.log").read_text()
        yield Serving(process, json.loads(ready.read_text()))
    finally:
        process.kill()  # the server ends with it
        process.wait()


def scripted(folder: Path, **script: Any) -> dict[str, Any]:
    table = folder / "token_table"
    table.write_bytes(export_token_table(tokenizer()))
    base = {"vocab_size": VOCAB, "end_ids": [END_ID], "token_table_file": str(table)}
    return {"worker": "scripted", "scripted": base | {"emit": "echo"} | script}


def test_it_fails_when_the_worker_cannot_be_brought_back(tmp_path: Path) -> None:
    with serving(tmp_path, {"max_restarts": 0}) as serve:
        children = psutil.Process(serve.facts["server_pid"]).children()
        [worker] = [c for c in children if "slipstream.worker" in c.cmdline()]
        start = time.monotonic()
        worker.kill()
        assert serve.process.wait(30) == 1
        assert time.monotonic() - start < 10
        assert not psutil.pid_exists(serve.facts["server_pid"])
        assert "tritonserver ended with code 70" in (tmp_path / "serve.log").read_text()


def test_ctrl_c_lets_a_running_stream_end_and_refuses_a_new_one(tmp_path: Path) -> None:
    with serving(tmp_path, scripted(tmp_path, step_us=20_000)) as serve:
        with Stream(serve.grpc) as stream, Stream(serve.grpc) as late:
            stream.send("ensemble", question(TEXT, COUNT, stream=True, return_finish_reason=True))
            replies = [stream.next()]
            late.send("ensemble", question(TEXT, 1))  # its connection is there, and it works
            assert not late.until_final()[-1].error
            serve.process.send_signal(signal.SIGINT)

            def refusal() -> str:
                return late.ask("ensemble", question(TEXT, 1))[-1].error

            wait_for(lambda: bool(refusal()), 2, "new requests are refused")
            replies += stream.until_final()
            assert stream.end() == []
        assert {reply.error for reply in replies} == {""}
        assert ending(replies) == "length"
        expected = [TEXT_IDS[i % len(TEXT_IDS)] for i in range(COUNT)]
        assert joined_text(replies) == decode(expected)
        assert serve.process.wait(30) == 0
        assert not psutil.pid_exists(serve.facts["server_pid"])


class Client(threading.Thread):
    """Asks one request after the other until one fails: when each ended, and whether well."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.good: list[float] = []
        self.failed = 0.0
        self._url = url
        self.start()

    def run(self) -> None:
        while not self.failed:
            try:
                error = ask(self._url, "ensemble", question(TEXT, 20))[-1].error
            except grpc.RpcError as refused:
                error = str(refused)
            if error:
                self.failed = time.monotonic()
            else:
                self.good.append(time.monotonic())


@pytest.mark.parametrize("ensemble", ["fused", "steps"])
def test_steady_traffic_does_not_keep_the_server(tmp_path: Path, ensemble: str) -> None:
    """New requests are refused at once, with an ensemble of steps after drain_timeout_ms."""
    worker = scripted(tmp_path, step_us=20_000) | {"drain_timeout_ms": 3000}
    with serving(tmp_path, worker, ensemble) as serve:
        clients = [Client(serve.grpc) for _ in range(6)]
        wait_for(lambda: all(client.good for client in clients), 20, "all are served")
        told = time.monotonic()
        serve.process.send_signal(signal.SIGINT)
        assert serve.process.wait(30) == 0
        took = time.monotonic() - told
        for client in clients:
            client.join(20)
        assert all(client.failed for client in clients)
        last = max(client.good[-1] for client in clients) - told
        first_failure = min(client.failed for client in clients) - told
    assert took < 12
    if ensemble == "steps":
        assert 2.5 < last < 5  # they went on
        assert first_failure >= 3
    else:
        assert last < 2  # only what ran ended


def test_the_command_that_build_prints_serves(tmp_path: Path) -> None:
    """In a shell that knows nothing of this Python, with ports of the test's own."""
    build = [sys.executable, "-m", "slipstream.cli", "repo", "build", "--device", "cpu"]
    build += ["--kv-cache-tokens", "2048", "--output", "a repository"]
    printed = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    [command] = [line for line in printed.splitlines() if line.startswith("serve it: ")]
    ports = choose_ports(HOST)
    command = command.removeprefix("serve it: ") + (
        f" --http-port={ports.http} --grpc-port={ports.grpc} --metrics-port={ports.metrics}"
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{command}\nexit $?"],  # the shell stays, and tells how it ended
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://{HOST}:{ports.http}/v2/health/ready"
        wait_for(lambda: answers(url) or process.poll() is not None, 120, "it is ready")
        assert process.poll() is None, (tmp_path / "log").read_text()
        [reply] = ask(f"{HOST}:{ports.grpc}", "ensemble", question(TEXT, 20))
        assert not reply.error
        assert reply.text().startswith(TEXT)
        assert len(reply.text()) > len(TEXT) + 20
        [server] = psutil.Process(process.pid).children()
        server.terminate()
        assert process.wait(30) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_two_starts_at_once_do_not_share_a_port(tmp_path: Path) -> None:
    """Both choose before either listens. Each serves on ports of its own, and says which."""
    folders = [tmp_path / name for name in ("a", "b")]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def start(folder: Path) -> Serving:
            folder.mkdir()
            return stack.enter_context(serving(folder, scripted(folder)))

        both = list(pool.map(start, folders))
        ports = [serve.facts[name] for serve in both for name in ("http", "grpc", "metrics")]
        assert len(set(ports)) == 6
        for serve in both:
            server = psutil.Process(serve.facts["server_pid"])
            listening = {
                c.laddr.port for c in server.net_connections("tcp") if c.status == "LISTEN"
            }
            assert {serve.facts["http"], serve.facts["grpc"]} <= listening
            [reply] = ask(serve.grpc, "ensemble", question(TEXT, 3))
            assert not reply.error
        for serve in both:
            serve.process.send_signal(signal.SIGINT)
        assert [serve.process.wait(30) for serve in both] == [0, 0]
