# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slipstream.server import (
    InstallationError,
    Ports,
    ServerError,
    ServerOptions,
    TritonProcess,
    TritonServer,
    backend_directory,
    choose_ports,
    find_tritonserver,
)
from slipstream.server import ports as ports_module
from slipstream.server import process as process_module
from slipstream.server.command import command_line, shell_command
from slipstream.server.installation import server_environment

FAKE = Path(__file__).with_name("fake_tritonserver.py")


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    return path


def test_named_server_comes_first(tmp_path: Path) -> None:
    named = executable(tmp_path / "named")
    other = executable(tmp_path / "other")
    environment = {"SLIPSTREAM_TRITONSERVER": str(other), "PATH": ""}
    assert find_tritonserver(str(named), environment).binary == named
    assert find_tritonserver("", environment).binary == other


def test_a_folder_may_be_named(tmp_path: Path) -> None:
    binary = executable(tmp_path / "bin" / "tritonserver")
    assert find_tritonserver(str(tmp_path), {}).binary == binary


def test_named_server_must_exist() -> None:
    with pytest.raises(InstallationError, match="--tritonserver is '/no/such'; /no/such is no exe"):
        find_tritonserver("/no/such", {})


@pytest.mark.skipif(Path("/opt/tritonserver").exists(), reason="a server is installed")
def test_path_comes_before_the_wheel(tmp_path: Path) -> None:
    binary = executable(tmp_path / "tritonserver")
    found = find_tritonserver("", {"PATH": str(tmp_path)})
    assert (found.binary, found.source) == (binary, "PATH")


@pytest.mark.skipif(Path("/opt/tritonserver").exists(), reason="a server is installed")
def test_the_wheel_is_found_without_importing_it() -> None:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed")
    code = (
        "import sys; from slipstream.server import find_tritonserver as f; s = f('', {'PATH': ''});"
        "print(s.binary, s.version, s.from_wheel, 'pytriton' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    binary, version, from_wheel, imported = result.stdout.split()
    assert os.access(binary, os.X_OK)
    assert (version, from_wheel, imported) == ("2.51.0", "True", "False")


def test_this_python_runs_the_worker() -> None:
    environment = server_environment(Path("/b"), {})
    assert environment == {"SLIPSTREAM_PYTHON": sys.executable}
    assert server_environment(Path("/b"), {"SLIPSTREAM_PYTHON": "/p"})["SLIPSTREAM_PYTHON"] == "/p"


def test_what_goes_in_front_of_the_server_comes_before_what_others_put_there() -> None:
    library = str(backend_directory() / "slipstream" / "libslipstream_preload.so")
    assert server_environment(backend_directory(), {})["LD_PRELOAD"] == library
    both = server_environment(backend_directory(), {"LD_PRELOAD": "/x.so"})["LD_PRELOAD"]
    assert both == f"{library}:/x.so"


def test_a_server_may_open_as_many_files_as_the_hard_limit_says(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        process = TritonProcess(fake(tmp_path), options(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        process.wait_ready(["llm"], 20)


def test_ports_differ_and_are_free() -> None:
    ports = choose_ports("127.0.0.1")
    numbers = [ports.http, ports.grpc, ports.metrics]
    assert len(set(numbers)) == 3
    for number in numbers:
        with socket.create_server(("127.0.0.1", number)):
            pass


def test_usual_ports_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports_module, "USUAL", (port, 0, 0))
        assert choose_ports("127.0.0.1").http != port


def test_given_ports_do_not_give_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"cannot listen on 127.0.0.1:{port}: Address already in use by process"
        with pytest.raises(InstallationError, match=f"^{message} {os.getpid()} "):
            choose_ports("127.0.0.1", http=port)


def test_given_ports_must_differ() -> None:
    with pytest.raises(InstallationError, match="must differ"):
        choose_ports("127.0.0.1", http=9000, grpc=9000)


def test_a_given_port_is_not_taken_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = choose_ports("127.0.0.1")
    monkeypatch.setattr(ports_module, "USUAL", (usual.http, usual.grpc, usual.metrics))
    assert choose_ports("127.0.0.1") == usual
    ports = choose_ports("127.0.0.1", grpc=usual.http)
    assert ports.grpc == usual.http
    assert ports.http not in (usual.http, usual.metrics)
    assert ports.metrics == usual.metrics


def options(tmp_path: Path, exit_timeout_s: int = 5) -> ServerOptions:
    return ServerOptions(
        repository=tmp_path,
        backends=tmp_path,
        host="127.0.0.1",
        ports=choose_ports("127.0.0.1"),
        log=tmp_path / "log",
        exit_timeout_s=exit_timeout_s,
        extra=("--x=1",),
    )


def fake(tmp_path: Path) -> TritonServer:
    return TritonServer(executable(tmp_path / "bin" / "tritonserver"), "test")


def test_command_line_listens_only_where_told(tmp_path: Path) -> None:
    line = command_line(TritonServer(Path("t"), ""), options(tmp_path))
    addresses = [part for part in line if "-address=" in part]
    assert addresses == [f"--{n}-address=127.0.0.1" for n in ("http", "grpc", "metrics")]
    assert line[-1] == "--x=1"


def test_a_shell_gets_the_same_command_with_its_environment(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    printer = folder / "tritonserver"
    printer.write_text('#!/bin/sh\necho "$SLIPSTREAM_PYTHON"\nprintf "%s\\n" "$@"\n')
    printer.chmod(0o755)
    server, given = TritonServer(printer, "test"), replace(options(folder), ports=Ports(0, 1, 2))
    result = subprocess.run(
        ["/bin/sh", "-c", shell_command(server, given)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [sys.executable, *command_line(server, given)[1:]]
    assert result.stdout.splitlines() == expected
    assert "--exit-timeout-secs=5" in expected
    assert [part for part in expected if "-port" in part] == ["--grpc-port=1", "--metrics-port=2"]


def test_ready_progress_and_drain(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    with TritonProcess(fake(tmp_path), options(tmp_path)) as process:
        process.wait_ready(["llm"], 20, lambda fraction, what: seen.append((fraction, what)))
        assert process.is_live()
        assert not process.is_ready(["other"])
    assert (0.4, "loading weights") in seen
    assert process.poll() == 0


def test_a_crash_while_starting_shows_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRITON", "crash")
    with (
        TritonProcess(fake(tmp_path), options(tmp_path)) as process,
        pytest.raises(ServerError) as caught,
    ):
        process.wait_ready([], 20)
    message = str(caught.value)
    assert message.startswith("tritonserver ended with exit code 1\n")
    assert "the reason" in message
    assert str(tmp_path / "log") in message


def test_death_by_signal_is_named(tmp_path: Path) -> None:
    with TritonProcess(fake(tmp_path), options(tmp_path)) as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="signal SIGKILL"):
            process.wait_ready(["other"], 20)


def test_not_ready_in_time(tmp_path: Path) -> None:
    with (
        TritonProcess(fake(tmp_path), options(tmp_path)) as process,
        pytest.raises(ServerError, match="not ready after 1 s"),
    ):
        process.wait_ready(["other"], 1)


def test_a_server_that_does_not_drain_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRITON", "hang")
    monkeypatch.setattr(process_module, "_GRACE_S", 0.2)
    with TritonProcess(fake(tmp_path), options(tmp_path, exit_timeout_s=0)) as process:
        process.wait_ready(["llm"], 20)
    assert process.poll() == -signal.SIGKILL


def test_a_binary_that_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="No such file"):
        TritonProcess(TritonServer(tmp_path / "none", ""), options(tmp_path))


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    given = replace(options(tmp_path), log=tmp_path / "none" / "log")
    with pytest.raises(ServerError, match="cannot write the log .*/none/log: No such file"):
        TritonProcess(fake(tmp_path), given)
