# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Running one tritonserver process: start, wait until ready, drain, stop."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import BinaryIO

from slipstream.errors import SlipstreamError
from slipstream.server.command import ServerOptions, command_line
from slipstream.server.installation import TritonServer, server_environment
from slipstream.server.listeners import taken_port
from slipstream.server.ports import Ports

# What the backend logs while a model loads.
_PROGRESS = re.compile(r"model \S+: (?P<percent>\d{1,3})% (?P<what>[^\"]+)")
_FAILURE = re.compile(r"^(E\d|error:|.*\bTraceback\b|.*(Error|error): )")
_TAIL_BYTES = 64 << 10
_POLL_S = 0.05
# tritonserver can hang after a fatal signal; it is killed so long after its own time to exit.
_GRACE_S = 5.0
_LIVE_REQUESTS = re.compile(r"^slipstream_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)
_IN_USE = re.compile(r"Socket '[^']*:(\d+)' already in use")
_QUIET_CHECKS = 5  # in a row: the gauges are refreshed every 100 ms

Progress = Callable[[float, str], None]


class ServerError(SlipstreamError, RuntimeError):
    """The server did not start, or died; the message ends with the tail of its log."""


class PortTakenError(ServerError):
    """Another process listens on a port that was free when it was chosen."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"{host}:{port} was taken by another process before tritonserver listened on it"
        )
        self.port = port


def _before_exec(detached: bool) -> None:
    """In the child: a server that is not detached does not outlive whoever started it, even one
    killed with -9. It has as many descriptors as it may: every connection takes one."""
    if not detached:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # more than the kernel's fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class TritonProcess:
    """A running tritonserver. As a context manager it is stopped at the end.

    Only this process, by its id, is ever signalled.
    """

    def __init__(self, server: TritonServer, options: ServerOptions) -> None:
        """Starts the server; returns before it is ready. Raises ServerError if it cannot run."""
        self._server = server
        self._options = options
        self._told_to_exit = False
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        log = self._open_log()
        try:
            # A session of its own: Ctrl-C in a terminal reaches us alone, and we drain it.
            return subprocess.Popen(
                command_line(self._server, self._options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                env=server_environment(self._options.backends),
                start_new_session=True,
                preexec_fn=partial(_before_exec, self._options.detached),
            )
        except OSError as error:
            raise ServerError(f"{self._server.binary}: {error.strerror}") from None
        finally:
            if log is not None:
                log.close()

    def _open_log(self) -> BinaryIO | None:
        file = self._options.log
        try:
            return None if file is None else file.open("wb")
        except OSError as error:
            raise ServerError(f"cannot write the log {file}: {error.strerror}") from None

    def restart(self, ports: Ports) -> None:
        """Ends the process at once and starts one like it, with other ports.

        Raises ServerError if it was told to exit.
        """
        self.kill()
        self._process.wait()
        if self._told_to_exit:
            raise ServerError("tritonserver was told to exit while it started")
        self._options = replace(self._options, ports=ports)
        self._process = self._start()
        if self._told_to_exit:  # by a signal handler, just now
            self.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ports(self) -> Ports:
        return self._options.ports

    @property
    def http_url(self) -> str:
        host = self._options.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://{shown}:{self._options.ports.http}"

    def __enter__(self) -> TritonProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def is_ready(self, models: Sequence[str] = ()) -> bool:
        """Whether the server, and every model named, can serve now."""
        paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)]
        return all(_answers(self.http_url + path) for path in paths)

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        return _answers(self.http_url + "/v2/health/live")

    def wait_ready(
        self,
        models: Sequence[str] = (),
        timeout_s: float = 1800,
        progress: Progress = lambda fraction, what: None,
    ) -> float:
        """Waits until all ``models`` are ready; returns the seconds it took.

        progress: called with the fraction loaded (0 to 1) and what is being done.

        Raises:
            PortTakenError: another process listens on one of the ports; told as soon as it does,
                since tritonserver would find out only after loading its models.
            ServerError: the process ended, or was not ready in time.
        """
        start = time.monotonic()
        while True:
            ready = self.is_ready(models)
            self._check_process()
            self._check_ports()  # whatever answered may be another server
            if ready:
                return time.monotonic() - start
            if time.monotonic() - start > timeout_s:
                raise ServerError(f"not ready after {timeout_s:.0f} s\n{self.explain()}")
            progress(*self._loading())
            time.sleep(_POLL_S)

    def _check_process(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        if in_use := _IN_USE.search("\n".join(self.tail(200))):
            raise PortTakenError(self._options.host, int(in_use[1]))
        raise ServerError(f"tritonserver ended with {_how(code)}\n{self.explain()}")

    def _check_ports(self) -> None:
        host, ports = self._options.host, self.ports
        port = taken_port(host, (ports.http, ports.grpc, ports.metrics), self.pid)
        if port is not None:
            raise PortTakenError(host, port)

    def wait(self) -> int:
        """Waits until the process ends; returns its exit code."""
        return self._process.wait()

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        """Asks the server to drain and exit."""
        self._told_to_exit = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def is_idle(self) -> bool:
        """Whether nothing is being generated; true also of a server that does not say."""
        host = self.http_url.rpartition(":")[0]
        try:
            with urllib.request.urlopen(
                f"{host}:{self._options.ports.metrics}/metrics", timeout=2
            ) as response:
                text = response.read().decode()
        except (OSError, urllib.error.URLError):
            return True
        return not any(float(value) > 0 for value in _LIVE_REQUESTS.findall(text))

    def drain(self) -> None:
        """Asks for the exit, which refuses new requests and lets running ones finish.

        It first waits until no request is left, at most ``wait_for_idle_s``, while it still accepts
        new ones: tritonserver 2.51 cuts off streams through an ensemble of steps when it is told to
        exit.
        """
        options = self._options
        wait_s = 0.0 if self._told_to_exit else min(options.wait_for_idle_s, options.exit_timeout_s)
        deadline = time.monotonic() + wait_s
        quiet = 0
        while self._process.poll() is None and time.monotonic() < deadline:
            quiet = quiet + 1 if self.is_idle() else 0
            if quiet >= _QUIET_CHECKS:
                break
            time.sleep(_POLL_S)
        self.terminate()

    def stop(self) -> int:
        """Drains, then ends the process, by force if it takes too long; returns its exit code."""
        if self._process.poll() is None:
            self.drain()
            try:
                self._process.wait(self._options.exit_timeout_s + _GRACE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.wait()

    def tail(self, lines: int = 30) -> list[str]:
        """The last lines of the log; none without a file of it."""
        if self._options.log is None:
            return []
        try:
            with self._options.log.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    def explain(self) -> str:
        """The log's lines that look like the reason of a failure, then its tail."""
        if self._options.log is None:
            return "(its output, above, says why)"
        reasons = [line for line in self.tail(2000) if _FAILURE.match(line)]
        shown = [*reasons[:12], "...", *self.tail(8)] if reasons else self.tail(25)
        return "\n".join([*shown, f"(all of it: {self._options.log})"])

    def _loading(self) -> tuple[float, str]:
        for line in reversed(self.tail(200)):
            if match := _PROGRESS.search(line):
                return int(match["percent"]) / 100, match["what"].strip()
        return 0.0, "starting tritonserver"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
