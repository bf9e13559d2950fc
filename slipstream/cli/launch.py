# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Starts a server of an existing repository in the background, for deploy scripts.

Its options are those of TensorRT-LLM's ``scripts/launch_triton_server.py``: each is honoured, or
refused by name. It returns once the models are ready, and the server lives on, in a session of its
own; or it fails, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from slipstream.cli.console import note, say
from slipstream.config import ConfigError, SlipstreamConfig
from slipstream.errors import SlipstreamError
from slipstream.repository import lint_repository
from slipstream.server import (
    ServerError,
    ServerOptions,
    TritonProcess,
    TritonServer,
    backend_directory,
    choose_ports,
    find_tritonserver,
)

_VERBOSE = 3  # what --log asks Triton for
_SPAWNED = "cannot be had: the server starts a worker process for each model, without MPI"
_DEFAULTS = SlipstreamConfig().server


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started, and the models that are waited for besides the server itself."""

    server: TritonServer
    options: ServerOptions
    models: tuple[str, ...]
    start_timeout_s: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 when ready, 1 with the reason; argparse ends with 2 itself."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        start(read(arguments, os.environ))
    except SlipstreamError as error:
        note(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def read(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Launch:
    """Reads the options and chooses server and ports; starts nothing.

    Raises:
        ConfigError: an option asks for what cannot be had.
        InstallationError: there is no server, or another process listens on a port.
    """
    given = _parser().parse_args(arguments)
    _refuse(given, environment)
    repository = _repository(given.model_repo)
    pool = given.multimodal_gpu0_cuda_mem_pool_bytes
    options = ServerOptions(
        repository=repository,
        backends=backend_directory(),
        host=given.host,
        ports=choose_ports(given.host, given.http_port, given.grpc_port, given.metrics_port),
        log=_log(given.log, given.log_file),
        exit_timeout_s=given.exit_timeout,
        log_verbose=_VERBOSE if given.log else 0,
        extra=(f"--cuda-memory-pool-byte-size=0:{pool}",) if pool else (),
        detached=True,
    )
    models = _models(repository, given.tensorrt_llm_model_name)
    return Launch(find_tritonserver(given.tritonserver), options, models, given.start_timeout)


def start(launch: Launch) -> None:
    """Starts the server and waits until it is ready; one that does not come to that is ended."""
    options = launch.options
    note(f"tritonserver: {launch.server.binary} ({launch.server.source})")
    process = TritonProcess(launch.server, options)
    try:
        seconds = process.wait_ready(launch.models, launch.start_timeout_s)
    except BaseException as error:
        process.kill()  # nobody is served yet
        process.wait()
        if isinstance(error, ServerError):
            _explain(options.repository)
        raise
    ports = process.ports
    say(
        f"ready in {seconds:.1f} s: tritonserver is process {process.pid}, HTTP "
        f"{options.host}:{ports.http}, gRPC {options.host}:{ports.grpc}, metrics "
        f"{options.host}:{ports.metrics}; `kill {process.pid}` drains and ends it"
    )


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _explain(repository: Path) -> None:
    """What is wrong with the repository, if that can be seen."""
    for finding in lint_repository(repository):
        if finding.severity == "error":
            note(str(finding))


def _refuse(given: argparse.Namespace, environment: Mapping[str, str]) -> None:
    if given.world_size != 1:
        raise ConfigError(
            f"--world_size is {given.world_size}; it must be 1: one server process serves the "
            "whole repository, and each model runs on one device, which its `device` or "
            "instance_group names"
        )
    if given.disable_spawn_processes:
        raise ConfigError(f"--disable-spawn-processes {_SPAWNED}; leave it out")
    if (
        environment.get("TRTLLM_ORCHESTRATOR") == "1"
        and environment.get("TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES") == "0"
    ):
        raise ConfigError(f"TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES is '0', which {_SPAWNED}; unset it")
    if given.trtllm_llmapi_launch:
        raise ConfigError(
            "--trtllm_llmapi_launch is for models of TensorRT-LLM's LLM API, which are not served "
            "here; leave it out"
        )


def _repository(value: str) -> Path:
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"--model_repo is {value!r}; it must be a directory of this machine")
    if not _models_of(folder):
        raise ConfigError(f"--model_repo is {value!r}; there is no model (*/config.pbtxt) in it")
    return folder


def _models_of(repository: Path) -> list[str]:
    return sorted(file.parent.name for file in repository.glob("*/config.pbtxt"))


def _models(repository: Path, names: str) -> tuple[str, ...]:
    """The names that are to be ready. Raises ConfigError if the repository has no such model."""
    wanted = tuple(name.strip() for name in names.split(",") if name.strip())
    there = _models_of(repository)
    for name in wanted:
        if name not in there:
            raise ConfigError(
                f"--tensorrt_llm_model_name is {names!r}; {repository} has no model {name!r}, "
                f"only {', '.join(there)}"
            )
    return wanted


def _log(verbose: bool, file: str) -> Path | None:
    if file:
        return Path(file)
    return Path("triton_log.txt") if verbose else None


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a port from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a whole number from 0 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch_triton_server.py",
        description="Starts tritonserver in the background and returns once its models are ready.",
    )
    add = parser.add_argument
    add("--model_repo", required=True, metavar="DIR", help="the model repository")
    add("--tritonserver", default="", metavar="FILE", help="its binary; default: the one found")
    add("--host", default="0.0.0.0", help="address to listen on; default: every one")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        add(f"--{name}_port", type=_port, default=port, metavar="PORT", help=f"default: {port}")
    add("--log", action="store_true", help=f"log at verbosity {_VERBOSE}, to the log file")
    add(
        "--log-file",
        default="",
        metavar="FILE",
        help="log to this file, not to where this command's own output goes; with --log "
        "triton_log.txt by default",
    )
    add(
        "--start_timeout",
        type=_count,
        default=_DEFAULTS.start_timeout_s,
        metavar="SECONDS",
        help=f"give up if not ready by then; default: {_DEFAULTS.start_timeout_s}",
    )
    add(
        "--exit_timeout",
        type=_count,
        default=_DEFAULTS.exit_timeout_s,
        metavar="SECONDS",
        help=f"how long it may drain when told to exit; default: {_DEFAULTS.exit_timeout_s}",
    )
    add(
        "--tensorrt_llm_model_name",
        default="",
        metavar="NAMES",
        help="models that must be in the repository and ready, separated by commas",
    )
    add(
        "--multimodal_gpu0_cuda_mem_pool_bytes",
        type=_count,
        default=0,
        metavar="BYTES",
        help="size of the server's own memory pool on GPU 0; 0: Triton's default",
    )
    _add_what_always_holds(parser)
    _add_what_is_refused(parser)
    return parser


def _add_what_always_holds(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options that ask for what is always so")
    for names, text in (
        (("-f", "--force"), "start beside other servers; a taken port is refused with it, too"),
        (("--multi-model",), "serve several models"),
        (("--no-mpi",), "start without MPI"),
        (("--oversubscribe",), "start more processes than MPI has slots"),
    ):
        group.add_argument(*names, action="store_true", help=text)


def _add_what_is_refused(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options that are refused")
    group.add_argument("--world_size", type=int, default=1, metavar="N", help="all but 1")
    for name in ("--disable-spawn-processes", "--trtllm_llmapi_launch"):
        group.add_argument(name, action="store_true", help="always")
