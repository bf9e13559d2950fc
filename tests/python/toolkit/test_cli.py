# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slipstream.cli import checks, serving
from slipstream.cli.app import app, main
from slipstream.config import all_options
from slipstream.repository.render import parse_text
from slipstream.server import InstallationError, TritonServer, find_tritonserver

from .test_server import executable

RUNNER = CliRunner()


def run(*arguments: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_every_option_has_a_flag() -> None:
    code, output = run("serve", "--help")
    assert code == 0
    names = [name for name in all_options() if name != "model"]
    assert [n for n in names if f"--{n.replace('_', '-')}" not in output] == []
    assert "(default: 1024)" in output


def test_flags_over_file(tmp_path: Path, checkpoint: Path) -> None:
    file = tmp_path / "slipstream.yaml"
    file.write_text("scheduler: {max_num_seqs: 7, max_num_tokens: 99, pipeline_depth: 1}\n")
    arguments = ["--max-num-seqs", "8", "--no-enable-prefix-reuse", "--scripted", '{"a": 1}']
    code, output = run(
        "repo", "build", str(checkpoint), "-o", str(tmp_path / "r"), "-c", str(file), *arguments
    )
    assert code == 0
    files = [line for line in output.splitlines() if line.endswith("config.pbtxt")]
    assert len(files) == 4
    [line] = [line for line in output.splitlines() if line.startswith("serve it: ")]
    words = shlex.split(line.removeprefix("serve it: "))
    assert words[0] == f"SLIPSTREAM_PYTHON={sys.executable}"
    assert words[1].endswith("libslipstream_preload.so")
    server = find_tritonserver()
    assert words[2:4] == [str(server.binary), f"--model-repository={tmp_path / 'r'}"]
    assert {"--disable-auto-complete-config", "--exit-timeout-secs=35"} < set(words)
    for port in ("http", "grpc", "metrics"):
        assert f"--{port}-address=127.0.0.1" in words
    message = parse_text((tmp_path / "r" / "llm" / "config.pbtxt").read_text())
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    assert parameters["max_num_seqs"] == "8"
    assert parameters["max_num_tokens"] == "99"
    assert parameters["pipeline_depth"] == "1"
    assert parameters["enable_prefix_reuse"] == "false"
    assert parameters["enable_partial_reuse"] == "true"
    assert json.loads(parameters["scripted"]) == {"a": 1}
    assert parameters["model"] == str(checkpoint)


def test_what_a_file_says_of_the_server_is_in_the_command(tmp_path: Path, checkpoint: Path) -> None:
    file, binary = tmp_path / "slipstream.yaml", executable(tmp_path / "tritonserver")
    server = f"{{host: 0.0.0.0, http_port: 81, exit_timeout_s: 7, tritonserver: {binary}}}"
    file.write_text(f"server: {server}\n")
    code, output = run("repo", "build", str(checkpoint), "-o", str(tmp_path / "r"), "-c", str(file))
    assert code == 0
    words = output.split()
    assert {str(binary), "--http-address=0.0.0.0", "--http-port=81"} < set(words)
    assert "--exit-timeout-secs=7" in words


def test_without_a_server_here_the_command_names_the_one_on_path(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: object) -> TritonServer:
        raise InstallationError("no tritonserver")

    monkeypatch.setattr(serving, "find_tritonserver", none)
    code, output = run("repo", "build", str(checkpoint), "-o", str(tmp_path / "r"))
    assert code == 0
    assert "libslipstream_preload.so tritonserver --model-repository=" in output


def test_lint_exits_by_severity(repository: Path) -> None:
    assert run("repo", "lint", str(repository)) == (0, "no findings\n")
    file = repository / "llm" / "config.pbtxt"
    text = file.read_text()
    file.write_text(text.replace('value {\n    string_value: "64"', "value {"))
    assert run("repo", "lint", str(repository))[0] == 0
    assert run("repo", "lint", "--strict", str(repository))[0] == 1
    file.write_text(text.replace("TYPE_BOOL", "TYPE_INT8", 1))
    code, output = run("repo", "lint", str(repository))
    assert code == 1
    assert "must be TYPE_BOOL" in output


def test_plan(checkpoint: Path) -> None:
    code, output = run(
        "repo", "plan", str(checkpoint), "--device", "cpu", "--kv-cache-tokens", "64"
    )
    assert code == 0
    assert "2 blocks = 64 tokens = 8.0 KiB" in output


def test_errors_are_one_message(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["slipstream", "repo", "plan", str(checkpoint), "--max-num-seqs", "-1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: scheduler.max_num_seqs is -1; must be greater than or equal to 0\n"
    )


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> TritonServer:
        raise InstallationError("no tritonserver; run `pip install it`")

    monkeypatch.setattr(checks, "find_tritonserver", none)
    code, output = run("doctor")
    assert code == 1
    assert "pip install it" in output
    assert "cannot serve yet; missing: " in output
    assert "tritonserver" in output.splitlines()[-1]


def test_doctor_warns_of_the_wheels_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TritonServer(Path("/w/bin/tritonserver"), "nvidia-pytriton 0.7.0", "2.51.0")
    monkeypatch.setattr(checks, "find_tritonserver", lambda: server)
    check = checks.check_server_bugs()
    assert check.state == "warning"
    assert "CVE-2025-23310" in check.found
    assert "nvcr.io/nvidia/tritonserver:25.07-py3" in check.fix
    other = TritonServer(Path("/opt/tritonserver/bin/tritonserver"), "/opt/tritonserver")
    monkeypatch.setattr(checks, "find_tritonserver", lambda: other)
    assert checks.check_server_bugs().state == "ok"


def test_doctor_says_what_cuda_shows_of_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H200, 143771, 1024, GPU-7a51'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed = "0: NVIDIA H200, 1.00 GiB of 140.40 GiB free"
    assert checks.check_gpus().found == listed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert checks.check_gpus().found == f"{listed}; CUDA_VISIBLE_DEVICES '' shows 0"


def test_doctor_warns_of_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.resource, "getrlimit", lambda which: (1024, 2048))
    check = checks.check_open_files()
    assert check.state == "warning"
    assert "ulimit -Hn 4096" in check.fix
    monkeypatch.setattr(checks.resource, "getrlimit", lambda which: (1024, 1 << 20))
    assert checks.check_open_files().state == "ok"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An executable of a fake server and a stand-in for the backend's library."""
    executable(tmp_path / "bin" / "tritonserver")
    return tmp_path


def serve(site: Path, checkpoint: Path, mode: str = "") -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from slipstream.cli import serving, main;"
        f"serving.backend_directory = lambda: Path({str(site)!r});"
        "serving.NAMING = {'slipstream': {'llm': 'llm'}}; sys.argv[0] = 'slipstream'; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(checkpoint), "--tritonserver", str(site)]
        + ["--ready-file", str(site / "ready"), "--device", "cpu"]
        + ["--repository", str(site / "repository")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAKE_TRITON": mode},
    )


def wait_ready(process: subprocess.Popen[str], site: Path) -> dict[str, int]:
    deadline = time.monotonic() + 60
    while not (site / "ready").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    facts: dict[str, int] = json.loads((site / "ready").read_text())
    return facts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_drains_on_the_first_signal(
    site: Path, checkpoint: Path, number: signal.Signals
) -> None:
    process = serve(site, checkpoint)
    facts = wait_ready(process, site)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"curl -N http://127.0.0.1:{facts['http']}/v2/models/ensemble/generate_stream" in out
    assert "python -c" in out
    assert "memory plan" in err
    assert "draining" in err
    assert (site / "repository" / "llm" / "config.pbtxt").is_file()


def test_serve_kills_on_the_second_signal(site: Path, checkpoint: Path) -> None:
    process = serve(site, checkpoint, "hang")
    facts = wait_ready(process, site)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "draining" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(facts["server_pid"], 0)


def test_serve_reports_a_server_that_dies(site: Path, checkpoint: Path) -> None:
    process = serve(site, checkpoint)
    facts = wait_ready(process, site)
    os.kill(facts["server_pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: tritonserver ended with code -9" in err


def test_serve_reports_a_server_that_does_not_start(site: Path, checkpoint: Path) -> None:
    process = serve(site, checkpoint, "crash")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: tritonserver ended with exit code 1" in err
    assert "the reason" in err
