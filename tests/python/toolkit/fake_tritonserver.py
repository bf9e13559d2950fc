# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Behaves like tritonserver as far as starting, health and draining go.

Takes its flags; FAKE_TRITON says how it ends: "" serves until SIGTERM, "crash" fails while loading,
"in use" finds its gRPC port in use, "hang" ignores SIGTERM. It is ready after a moment, and logs a
model's loading as the backend does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import NoReturn

START = time.monotonic()


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = self.path == "/v2/health/live" or time.monotonic() > START + 0.4
        known = self.path.startswith(("/v2/health/", "/v2/models/llm/"))
        self.send_response(200 if ready and known else 400)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def end_for_want_of(address: str, port: str) -> NoReturn:
    """In the words of tritonserver 2.51."""
    sys.stdout.write('E1124 02:38:51.0 1 main.cc:1] "failed to start a service: Unavailable - ')
    sys.stdout.write(f"Socket '{address}:{port}' already in use \"\n")
    sys.exit(1)


def main() -> None:
    flags = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
    mode = os.environ.get("FAKE_TRITON", "")
    sys.stdout.write('I1124 02:38:51.0 1 x.cc:1] "model llm: 40% loading weights"\n')
    sys.stdout.flush()
    if mode == "crash":
        sys.stdout.write("E1124 02:38:51.0 1 x.cc:1] the reason\nerror: creating server\n")
        sys.exit(1)

    if mode == "in use":
        end_for_want_of(flags["grpc-address"], flags["grpc-port"])

    def stop(number: int, frame: FrameType | None) -> None:
        if mode != "hang":
            sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        server = ThreadingHTTPServer((flags["http-address"], int(flags["http-port"])), Health)
    except OSError:
        end_for_want_of(flags["http-address"], flags["http-port"])
    server.serve_forever()


main()
