# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""`scripts/launch_triton_server.py` with a real server, as a deploy script runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from e2e_client import generate
from e2e_metrics import wait_for
from e2e_server import HOST

from slipstream.config import load_config
from slipstream.repository import build_repository, resolve
from slipstream.server import Ports, choose_ports

SCRIPT = Path(__file__).parents[3] / "scripts" / "launch_triton_server.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of the demo model, with the names that deploy scripts know."""
    folder = tmp_path / "models"
    options = {"naming": "tensorrt_llm", "device": "cpu", "kv_cache_tokens": 2048}
    build_repository(resolve(load_config(None, options)), folder)
    return folder


@dataclass(frozen=True)
class Result:
    """How the script ended, and where it and the server write."""

    code: int
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def server(self) -> psutil.Process:
        [number] = re.findall(r"tritonserver is process (\d+),", self.text)
        return psutil.Process(int(number))


@contextmanager
def launched(repository: Path, ports: Ports, *arguments: str) -> Iterator[Result]:
    """What the script started is ended afterwards."""
    command = [sys.executable, str(SCRIPT), "--model_repo", str(repository), "--host", HOST]
    for name in ("http", "grpc", "metrics"):
        command += [f"--{name}_port", str(getattr(ports, name))]
    output = repository.parent / "output"
    with output.open("w") as file:  # not a pipe, which the server would keep open
        code = subprocess.run(
            [*command, *arguments], cwd=repository.parent, stdout=file, stderr=file, timeout=120
        ).returncode
    result = Result(code, output)
    server = result.server if code == 0 else None
    try:
        yield result
    finally:
        if server is not None:
            with suppress(psutil.NoSuchProcess):
                server.kill()


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or only waits to be reaped by whoever that falls to."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_returns_when_it_is_ready_and_the_server_lives_on(repository: Path) -> None:
    ports = choose_ports(HOST)
    with launched(repository, ports, "--tensorrt_llm_model_name", "tensorrt_llm") as result:
        assert result.code == 0, result.text
        assert "Started HTTPService" in result.text, "its log goes where the script's output goes"
        body = {
            "text_input": "Once upon a time",
            "max_tokens": 5,
            "bad_words": "",
            "stop_words": "",
        }
        status, reply = generate(f"{HOST}:{ports.http}", "ensemble", body)
        assert status == 200
        assert reply["text_output"].startswith("Once upon a time")
        server = result.server
        processes = [server, *server.children(recursive=True)]
        assert any("slipstream.worker" in process.cmdline() for process in processes)
        server.terminate()
        wait_for(lambda: all(map(has_ended, processes)), 30, "all have ended")
        assert ": Found 0 live models" in result.text, "it unloaded them"


def test_a_repository_that_cannot_be_loaded_is_told(repository: Path) -> None:
    config = repository / "tensorrt_llm" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace('string_value: "2048"', 'string_value: "many"'))
    assert config.read_text() != text
    with launched(repository, choose_ports(HOST), "--log") as result:
        assert result.code == 1
        assert "error: tritonserver ended with exit code 1" in result.text
        assert "parameter kv_cache_tokens: 'many' is not a whole number" in result.text
        log = (repository.parent / "triton_log.txt").read_text()
        assert "'many' is not a whole number" in log
        [server] = {int(n) for n in re.findall(r"^[IWE]\d{4} [\d:.]+ (\d+) ", log, re.MULTILINE)}
        assert not psutil.pid_exists(server)
