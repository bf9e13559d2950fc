# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""`scripts/launch_triton_server.py`: every option, and starts of a stand-in for tritonserver."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from slipstream.cli import launch
from slipstream.cli.launch import Launch, read
from slipstream.config import ConfigError
from slipstream.server import InstallationError, Ports, choose_ports
from slipstream.server.command import command_line

from .conftest import ROOT
from .test_server import executable

SCRIPT = ROOT / "scripts" / "launch_triton_server.py"
HOST = "127.0.0.1"


@pytest.fixture
def ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "choose_ports", lambda host, *ports: Ports(*ports))


def parse(repository: Path, *arguments: str, environment: dict[str, str] | None = None) -> Launch:
    binary = executable(repository.parent / "bin" / "tritonserver")
    fixed = ("--model_repo", str(repository), "--tritonserver", str(binary))
    return read([*fixed, *arguments], environment or {})


def flags(plan: Launch) -> list[str]:
    return command_line(plan.server, plan.options)[1:]


def test_without_options_it_listens_where_tritonserver_does(
    repository: Path, ports_are_free: None
) -> None:
    plan = parse(repository)
    assert [part for part in flags(plan) if "-directory" not in part] == [
        f"--model-repository={repository}",
        "--http-address=0.0.0.0",
        "--http-port=8000",
        "--grpc-address=0.0.0.0",
        "--grpc-port=8001",
        "--metrics-address=0.0.0.0",
        "--metrics-port=8002",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=35",
        "--log-verbose=0",
    ]
    assert (plan.options.log, plan.options.detached) == (None, True)
    assert (plan.models, plan.start_timeout_s) == ((), 1800)


def test_what_is_honoured(repository: Path, ports_are_free: None) -> None:
    arguments = "--http_port 1 --grpc_port=2 --metrics_port 3 --exit_timeout 7 --start_timeout 9"
    arguments += " --tensorrt_llm_model_name llm,ensemble --host ::1"
    arguments += " --multimodal_gpu0_cuda_mem_pool_bytes 1000"
    plan = parse(repository, *arguments.split())
    assert {
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--metrics-address=::1",
        "--exit-timeout-secs=7",
        "--cuda-memory-pool-byte-size=0:1000",
    } < set(flags(plan))
    assert (plan.models, plan.start_timeout_s) == (("llm", "ensemble"), 9)


@pytest.mark.parametrize(
    ("arguments", "verbose", "file"),
    [
        ("--log", 3, "triton_log.txt"),
        ("--log --log-file a", 3, "a"),
        ("--log-file a", 0, "a"),
    ],
)
def test_log(
    repository: Path, ports_are_free: None, arguments: str, verbose: int, file: str
) -> None:
    plan = parse(repository, *arguments.split())
    assert f"--log-verbose={verbose}" in flags(plan)
    assert plan.options.log == Path(file)


def test_what_always_holds_changes_nothing(repository: Path, ports_are_free: None) -> None:
    asked = ["--force", "-f", "--multi-model", "--no-mpi", "--oversubscribe", "--world_size", "1"]
    environment = {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}
    assert parse(repository, *asked, environment=environment) == parse(repository)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--world_size 2", "--world_size is 2; it must be 1: "),
        ("--world_size 0 --no-mpi", "--world_size is 0; it must be 1: "),
        ("--multi-model --disable-spawn-processes", "--disable-spawn-processes cannot be had: "),
        ("--trtllm_llmapi_launch", "--trtllm_llmapi_launch is for models of TensorRT-LLM's LLM "),
        (
            "--tensorrt_llm_model_name llm,tensorrt_llm",
            "--tensorrt_llm_model_name is 'llm,tensorrt_llm'; {folder} has no model 'tensorrt_llm',"
            " only ensemble, llm, postprocessing, preprocessing",
        ),
    ],
)
def test_what_is_refused(
    repository: Path, ports_are_free: None, arguments: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message.format(folder=repository))):
        parse(repository, *arguments.split())


def test_the_environment_asks_for_what_is_refused(repository: Path, ports_are_free: None) -> None:
    environment = {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "0"}
    with pytest.raises(ConfigError, match="^TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES is '0', which can"):
        parse(repository, environment=environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --model_repo"),
        ("--http_port 65536", "--http_port: is '65536'; it must be a port from 1 to 65535"),
        ("--metrics_port x", "--metrics_port: is 'x'; it must be a port from 1 to 65535"),
        ("--exit_timeout -1", "--exit_timeout: is '-1'; it must be a whole number from 0 on"),
        ("--gpus 2", "unrecognized arguments: --gpus 2"),
    ],
)
def test_what_cannot_be_read(
    capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    fixed = ["--model_repo", "r"] if arguments else []
    with pytest.raises(SystemExit) as ended:
        read([*fixed, *arguments.split()], {})
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s3://bucket/models", "it must be a directory of this machine"),
        ("", "there is no model (*/config.pbtxt) in it"),
    ],
)
def test_a_repository_must_be_one(tmp_path: Path, value: str, message: str) -> None:
    value = value or str(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"--model_repo is {value!r}; {message}")):
        read(["--model_repo", value], {})


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_taken_port_is_refused_with_its_owner(repository: Path, force: tuple[str, ...]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        message = f"{HOST}:{port}: Address already in use by process {os.getpid()} ("
        free = ["--http_port", str(choose_ports(HOST).http)]
        with pytest.raises(InstallationError, match=re.escape(message)):
            parse(repository, "--host", HOST, *free, "--grpc_port", str(port), *force)


def command(repository: Path, *arguments: str) -> list[str]:
    """Starts the stand-in at free ports."""
    ports = choose_ports(HOST)
    words = [sys.executable, str(SCRIPT), "--model_repo", str(repository), "--host", HOST]
    words += ["--tritonserver", str(executable(repository.parent / "bin" / "tritonserver"))]
    for name in ("http", "grpc", "metrics"):
        words += [f"--{name}_port", str(getattr(ports, name))]
    return [*words, *arguments]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or only waits to be reaped by whoever that falls to."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_server_lives_on(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as file:
        asked = command(repository, "--tensorrt_llm_model_name", "llm")
        result = subprocess.run(asked, stdout=file, stderr=file, timeout=60)
    text = output.read_text()
    assert result.returncode == 0, text
    assert "model llm: 40% loading weights" in text, "its output goes where ours goes"
    [number] = re.findall(r"tritonserver is process (\d+),", text)
    server = psutil.Process(int(number))
    try:
        assert os.getsid(server.pid) == server.pid
        time.sleep(0.5)  # in which a signal at the script's end would have ended it
        assert not has_ended(server)
        server.terminate()
        wait_until(lambda: has_ended(server))
    finally:
        with suppress(psutil.NoSuchProcess):
            server.kill()


@pytest.mark.parametrize("log", [(), ("--log-file", "log")])
def test_a_crash_is_told(repository: Path, tmp_path: Path, log: tuple[str, ...]) -> None:
    config = repository / "llm" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_BOOL", "TYPE_INT8", 1))
    result = subprocess.run(
        command(repository, *log),
        cwd=tmp_path,
        env=os.environ | {"FAKE_TRITON": "crash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert "error: tritonserver ended with exit code 1\n" in result.stderr
    assert "the reason\n" in (result.stderr if log else result.stdout)
    assert "must be TYPE_BOOL" in result.stderr, "what lint knows is said, too"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_models_load_it_leaves_nothing(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    never = command(repository, "--tensorrt_llm_model_name", "ensemble", "--log-file", str(log))
    # Started in the background, as tests may be, it would ignore SIGINT.
    heeding = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(never, preexec_fn=heeding) as script:
        wait_until(lambda: log.exists() and "40%" in log.read_text())
        [server] = psutil.Process(script.pid).children()
        script.send_signal(number)
        assert script.wait(20) == 128 + number
    assert not psutil.pid_exists(server.pid)


def test_the_python_of_setup_takes_over(tmp_path: Path) -> None:
    """In a Python without the package."""
    (tmp_path / "scripts").mkdir()
    script = str(shutil.copy(SCRIPT, tmp_path / "scripts"))
    bare = [sys.executable, "-I", "-S", script, "--model_repo", "a b"]
    result = subprocess.run(bare, capture_output=True, text=True)
    assert result.returncode == 1
    assert "has no package slipstream: run ./scripts/setup" in result.stderr
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    result = subprocess.run(bare, capture_output=True, text=True)
    assert result.stdout.splitlines() == [script, "--model_repo", "a b"]
