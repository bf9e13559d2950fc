# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tritonserver process: which one is installed, starting and stopping it."""

from slipstream.server.command import ServerOptions, shell_command
from slipstream.server.installation import (
    InstallationError,
    TritonServer,
    backend_directory,
    find_tritonserver,
)
from slipstream.server.ports import Ports, choose_ports
from slipstream.server.process import (
    PortTakenError,
    ServerError,
    TritonProcess,
)

__all__ = [
    "InstallationError",
    "PortTakenError",
    "Ports",
    "ServerError",
    "ServerOptions",
    "TritonProcess",
    "TritonServer",
    "backend_directory",
    "choose_ports",
    "find_tritonserver",
    "shell_command",
]
