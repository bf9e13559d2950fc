# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The command that starts a tritonserver, for this program and for people."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from slipstream.server.installation import SERVER_VARIABLES, TritonServer, server_environment
from slipstream.server.ports import Ports


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What to run and where it listens; a port 0 is tritonserver's own default.

    log: the file that its output goes to; None: wherever that of this process goes.
    detached: it lives on when the process that started it ends.
    """

    repository: Path
    backends: Path
    host: str
    ports: Ports
    log: Path | None
    exit_timeout_s: int = 35
    log_verbose: int = 0
    wait_for_idle_s: float = 30.0  # at most, before it is told to exit: see TritonProcess.drain
    extra: tuple[str, ...] = ()
    detached: bool = False


def command_line(server: TritonServer, options: ServerOptions) -> list[str]:
    """The arguments that start the server."""
    host, ports = options.host, options.ports
    listen = []
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        listen.append(f"--{name}-address={host}")
        if port:
            listen.append(f"--{name}-port={port}")
    return [
        str(server.binary),
        f"--model-repository={options.repository}",
        f"--backend-directory={options.backends}",
        *listen,
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--log-verbose={options.log_verbose}",
        *options.extra,
    ]


def shell_command(server: TritonServer, options: ServerOptions) -> str:
    """The same for a shell, with what the server's environment needs."""
    environment = server_environment(options.backends)
    settings = [f"{n}={shlex.quote(environment[n])}" for n in SERVER_VARIABLES if n in environment]
    return " ".join([*settings, shlex.join(command_line(server, options))])
