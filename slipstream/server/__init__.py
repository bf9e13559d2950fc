# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tritonserver process: which one is installed, starting and stopping it."""

from slipstream.server.installation import (
    PRELOADED_LIBRARY,
    InstallationError,
    TritonServer,
    backend_directory,
    find_tritonserver,
)
from slipstream.server.ports import Ports, choose_ports
from slipstream.server.process import (
    PortTakenError,
    ServerError,
    ServerOptions,
    TritonProcess,
)

__all__ = [
    "PRELOADED_LIBRARY",
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
]
