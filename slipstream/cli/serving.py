# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a server that is ready."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from slipstream.cli.console import note, progress_bar, table
from slipstream.config import ConfigError, SlipstreamConfig
from slipstream.repository import build_repository, resolve
from slipstream.repository.checkpoint import UnmeasuredError
from slipstream.repository.plan import make_plan
from slipstream.repository.render import NAMING
from slipstream.server import (
    InstallationError,
    Ports,
    PortTakenError,
    ServerOptions,
    TritonProcess,
    TritonServer,
    backend_directory,
    choose_ports,
    find_tritonserver,
    shell_command,
)

_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
_ATTEMPTS = 5  # at a start whose ports are taken meanwhile
_OLD_WEIGHTS = "pytorch_model*.bin"  # for checkpoints without safetensors


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is decided before the server starts."""

    config: SlipstreamConfig
    repository: Path
    options: ServerOptions
    models: tuple[str, ...]


@contextmanager
def working_folder(repository: Path | None) -> Iterator[Path]:
    """The folder of the repository: the given one, or one that is gone afterwards."""
    if repository is not None:
        repository.mkdir(parents=True, exist_ok=True)
        yield repository
        return
    with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
        path = Path(folder) / "repository"
        path.mkdir()
        yield path


def make_local(config: SlipstreamConfig) -> SlipstreamConfig:
    """A configuration for this machine: the checkpoint downloaded."""
    section = config.model
    updates = {}
    for name in ("model", "tokenizer"):
        value = getattr(section, name)
        if value and not Path(value).is_dir():
            updates[name] = _download(name, value, section.revision)
    model = section.model_copy(update=updates)
    return config.model_copy(update={"model": model})


def prepare(
    config: SlipstreamConfig,
    repository: Path,
    log: Path,
    *,
    force: bool = False,
    extra: tuple[str, ...] = (),
) -> Prepared:
    """Plans, writes the repository and chooses server and ports; starts nothing.

    Raises the errors of config, repository and server; each message says what to do.
    """
    config = make_local(resolve(config))
    if config.worker.worker == "process" and config.model.load_format != "dummy":
        try:
            table(make_plan(config).rows(), "memory plan")
        except UnmeasuredError as error:
            note(f"no memory plan: {error}")
    build_repository(config, repository, force=force)
    options = server_options(config, repository, _choose_ports(config), log, extra)
    return Prepared(config, repository, options, tuple(NAMING[config.repository.naming].values()))


def server_options(
    config: SlipstreamConfig,
    repository: Path,
    ports: Ports,
    log: Path,
    extra: tuple[str, ...] = (),
) -> ServerOptions:
    """How the server of a repository is run."""
    server = config.server
    # What follows the order to exit ends streams through an ensemble of steps.
    steps = config.repository.ensemble == "steps"
    return ServerOptions(
        repository=repository,
        backends=backend_directory(),
        host=server.host,
        ports=ports,
        log=log,
        exit_timeout_s=server.exit_timeout_s,
        log_verbose=server.log_verbose,
        wait_for_idle_s=config.worker.drain_timeout_ms / 1000 if steps else 0.0,
        extra=extra,
    )


def command_to_serve(config: SlipstreamConfig, repository: Path) -> str:
    """The command that serves a repository from a shell. Without a server here it names the one
    that PATH will give."""
    section = config.server
    ports = Ports(section.http_port, section.grpc_port, section.metrics_port)
    options = server_options(config, repository.resolve(), ports, Path())
    try:
        server = find_tritonserver(section.tritonserver)
    except InstallationError:
        if section.tritonserver:
            raise
        server = TritonServer(Path("tritonserver"), "PATH")
    return shell_command(server, options)


def start(prepared: Prepared) -> TritonProcess:
    """Starts the server; it is not ready yet."""
    server = find_tritonserver(prepared.config.server.tritonserver)
    note(f"tritonserver: {server.binary} ({server.source})")
    return TritonProcess(server, prepared.options)


def wait_until_ready(process: TritonProcess, prepared: Prepared) -> float:
    """Waits with a progress bar; returns the seconds it took. Raises ServerError.

    A port that nobody asked for can be lost to another process until the server listens, which it
    does when its models are loaded: then the server is started again, with others.
    """
    server = prepared.config.server
    seconds = 0.0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with progress_bar("starting tritonserver") as update:
                start = time.monotonic()
                process.wait_ready(prepared.models, server.start_timeout_s, update)
                return seconds + time.monotonic() - start
        except PortTakenError as error:
            asked_for = (server.http_port, server.grpc_port, server.metrics_port)
            if error.port in asked_for or attempt == _ATTEMPTS:
                raise
            note(f"{error}; starting again with other ports")
            seconds += time.monotonic() - start
            process.restart(_choose_ports(prepared.config))
    raise AssertionError("unreachable: the last attempt raises")


def _choose_ports(config: SlipstreamConfig) -> Ports:
    server = config.server
    return choose_ports(server.host, server.http_port, server.grpc_port, server.metrics_port)


def _download(name: str, model: str, revision: str) -> str:
    note(f"downloading {model}")

    def fetch(*patterns: str) -> str:
        return snapshot_download(model, revision=revision or None, allow_patterns=list(patterns))

    try:
        folder = fetch(*_CHECKPOINT_FILES)
        if name == "model" and not any(Path(folder).glob("*.safetensors")):
            folder = fetch(*_CHECKPOINT_FILES, _OLD_WEIGHTS)
        return folder
    except Exception as error:  # the hub client raises many kinds: no network, no such repository
        raise ConfigError(
            f"{name} is {model!r}: no such directory, and not to be had from the hub ({error})"
        ) from None
