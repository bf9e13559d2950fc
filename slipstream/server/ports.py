# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Choosing the ports of a server."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from slipstream.server.installation import InstallationError
from slipstream.server.listeners import listener_on

USUAL = (8000, 8001, 8002)


@dataclass(frozen=True, slots=True)
class Ports:
    """HTTP, gRPC and metrics."""

    http: int
    grpc: int
    metrics: int


def choose_ports(host: str, http: int = 0, grpc: int = 0, metrics: int = 0) -> Ports:
    """Ports to listen on: those given; for a 0 the usual one, or any that is free.

    Raises:
        InstallationError: a given port is in use, or given twice.
    """
    given = (http, grpc, metrics)
    named = [port for port in given if port]
    if len(set(named)) != len(named):
        raise InstallationError(f"http, grpc and metrics ports {given} must differ")
    chosen = []
    with ExitStack() as held:  # all are held until all are chosen, so that they differ
        for port, usual in zip(given, USUAL, strict=True):
            wishes = [port] if port else [usual, 0]
            chosen.append(_hold(host, [w for w in wishes if port or w not in named], held))
    return Ports(*chosen)


def _hold(host: str, candidates: list[int], held: ExitStack) -> int:
    for port in candidates:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            if port == candidates[-1]:
                owner = listener_on(host, port) if error.errno == errno.EADDRINUSE else ""
                raise InstallationError(
                    f"cannot listen on {host}:{port}: {error.strerror}"
                    + (f" by {owner}" if owner else "")
                ) from None
            continue
        return int(listener.getsockname()[1])
    raise AssertionError("unreachable: the last candidate raises")
