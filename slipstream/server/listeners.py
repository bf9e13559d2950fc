# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Who listens on a port of this machine, as /proc tells (proc_net_tcp.txt of the Linux kernel)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"


def taken_port(host: str, ports: Collection[int], session: int) -> int | None:
    """One of the ports on which a process outside a session listens where one inside wants to.

    host: a name or an address. session: id of the session. A process of it whose descriptors cannot
    be read counts as one outside. Takes milliseconds: the kernel walks all it knows of TCP.
    """
    found = _listening(host, ports)
    if not found or found.keys() <= _sockets_of(session):  # its leader most likely
        return None
    own = set().union(*map(_sockets_of, _processes_of(session)))
    return next((port for inode, port in found.items() if inode not in own), None)


def listener_on(host: str, port: int) -> str:
    """Who listens on a port: ``process 12 (tritonserver)``; empty if that cannot be seen."""
    sockets = _listening(host, (port,)).keys()
    for process in _processes():
        if sockets & _sockets_of(process):
            with contextlib.suppress(OSError):  # gone meanwhile
                name = (_PROC / str(process) / "comm").read_text().strip()
                return f"process {process} ({name})"
    return ""


def _listening(host: str, ports: Collection[int]) -> dict[int, int]:
    """Sockets, by inode, that listen on one of the ports, and on the address or on every one."""
    found = {}
    wanted = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    everywhere = {"0.0.0.0", "::"}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, at = fields[1].partition(":")
                port = int(at, 16)
                if fields[3] != _LISTENING or port not in ports:
                    continue
                if {_readable(address), *wanted} & everywhere or _readable(address) in wanted:
                    found[int(fields[9])] = port
    return found


def _readable(address: str) -> str:
    """An address as the kernel prints it: words of four bytes in the machine's order."""
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def _sockets_of(process: int) -> set[int]:
    """Inodes of the sockets that a process has open; none of one that is gone."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(process) / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    found.add(int(target[len("socket:[") : -1]))
    return found


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _processes_of(session: int) -> Iterator[int]:
    for process in _processes():
        with contextlib.suppress(OSError):
            if os.getsid(process) == session:
                yield process
