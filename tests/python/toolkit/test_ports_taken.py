# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Ports that another process takes between their choice and the server's own bind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slipstream.cli.serving import Prepared, wait_until_ready
from slipstream.config import load_config
from slipstream.server import (
    PortTakenError,
    ServerError,
    ServerOptions,
    TritonProcess,
    TritonServer,
    choose_ports,
)
from slipstream.server.listeners import taken_port

FAKE = Path(__file__).with_name("fake_tritonserver.py")
HOST = "127.0.0.1"


@pytest.fixture
def stranger() -> Iterator[int]:
    """The session of a process that listens nowhere."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process.pid
    process.kill()
    process.wait()


def is_taken(host: str, port: int, session: int) -> bool:
    return taken_port(host, (1, port), session) == port


@pytest.mark.parametrize(
    ("listens_at", "host", "expected"),
    [
        (HOST, HOST, True),
        (HOST, "localhost", True),
        (HOST, "0.0.0.0", True),
        ("0.0.0.0", HOST, True),
        (HOST, "127.0.0.2", False),
    ],
)
def test_who_listens(stranger: int, listens_at: str, host: str, expected: bool) -> None:
    with socket.create_server((listens_at, 0)) as listener:
        port = listener.getsockname()[1]
        assert is_taken(host, port, stranger) is expected
        assert not is_taken(host, port, os.getsid(0)), "it is one of this session's"
    assert not is_taken(host, port, stranger)


def test_who_listens_on_ipv6(stranger: int) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        port = listener.getsockname()[1]
        assert is_taken("::1", port, stranger)
        assert is_taken("::", port, stranger)


def test_a_bound_socket_that_does_not_listen_is_in_nobodys_way(stranger: int) -> None:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        assert not is_taken(HOST, bound.getsockname()[1], stranger)


def prepared(tmp_path: Path, **asked_for: int) -> Prepared:
    ports = choose_ports(HOST, **{name.removesuffix("_port"): p for name, p in asked_for.items()})
    log = tmp_path / "log"
    options = ServerOptions(tmp_path, tmp_path, HOST, ports, log, exit_timeout_s=5)
    return Prepared(load_config(None, asked_for), tmp_path, options, ("llm",))


def start(tmp_path: Path, start: Prepared) -> TritonProcess:
    binary = tmp_path / "tritonserver"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    binary.chmod(0o755)
    return TritonProcess(TritonServer(binary, "test"), start.options)


@pytest.mark.parametrize("which", ["http", "grpc", "metrics"])
def test_it_is_noticed_while_models_load(tmp_path: Path, which: str) -> None:
    plan = prepared(tmp_path)
    port = getattr(plan.options.ports, which)
    with socket.create_server((HOST, port)), start(tmp_path, plan) as process:
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port} was taken") as caught:
            process.wait_ready(["never"], 20)
        assert caught.value.port == port


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_another_server_that_is_ready_is_not_taken_for_ours(tmp_path: Path) -> None:
    plan = prepared(tmp_path)
    port = plan.options.ports.http
    with ThreadingHTTPServer((HOST, port), Ready) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with (
                start(tmp_path, plan) as process,
                pytest.raises(PortTakenError, match=f"127.0.0.1:{port} was taken"),
            ):
                process.wait_ready(["llm"], 20)
        finally:
            other.shutdown()
            thread.join()


def test_the_server_finds_it_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRITON", "in use")
    plan = prepared(tmp_path)
    with start(tmp_path, plan) as process, pytest.raises(PortTakenError) as caught:
        process.wait_ready(["llm"], 20)
    assert caught.value.port == plan.options.ports.grpc


def test_it_starts_again_with_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = prepared(tmp_path)
    first = plan.options.ports
    with socket.create_server((HOST, first.grpc)), start(tmp_path, plan) as process:
        lost = process.pid
        wait_until_ready(process, plan)
        assert process.ports.grpc != first.grpc
        assert process.is_ready(["llm"])
        assert process.pid != lost
        with pytest.raises(ProcessLookupError):
            os.kill(lost, 0)
    assert f"{HOST}:{first.grpc} was taken" in capsys.readouterr().err


def test_a_port_that_was_asked_for_is_not_given_up(tmp_path: Path) -> None:
    port = choose_ports(HOST).http
    plan = prepared(tmp_path, http_port=port)
    with socket.create_server((HOST, port)), start(tmp_path, plan) as process:
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port} was taken"):
            wait_until_ready(process, plan)
        assert process.ports == plan.options.ports


def test_one_that_was_told_to_exit_does_not_start_again(tmp_path: Path) -> None:
    plan = prepared(tmp_path)
    with start(tmp_path, plan) as process:
        process.terminate()
        with pytest.raises(ServerError, match="told to exit"):
            process.restart(choose_ports(HOST))
        assert process.poll() is not None
