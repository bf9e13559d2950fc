# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Serves the demo model and sends it one request over each way in; used by scripts/demo."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipstream.cli.client import StreamingClient

START_TIMEOUT_S = 300
PROMPT = "Once upon a time"
FIELDS = {"text_input": PROMPT, "max_tokens": 48, "exclude_input_in_output": True}


class Stopwatch:
    """Prints text as it arrives and remembers when the first of it did."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None
        self.text = ""

    def show(self, text: str) -> None:
        if text and self._first is None:
            self._first = time.perf_counter()
        self.text += text
        print(text, end="", flush=True)

    def report(self) -> None:
        assert self._first is not None, "no text arrived"
        total = time.perf_counter() - self._start
        print(f"\n[time to first token {(self._first - self._start) * 1000:.0f} ms, ", end="")
        print(f"all of it {total * 1000:.0f} ms]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slipstream-demo-") as folder:
        ready = Path(folder) / "ready.json"
        with serving(ready) as server:
            address = wait_for(ready, server)
            http = f"http://{address['host']}:{address['http']}/v2/models/ensemble"
            plain = generate(http)
            streamed = generate_stream(http)
            over_grpc = stream_grpc(f"{address['host']}:{address['grpc']}")
            if not plain == streamed == over_grpc:
                print("error: the three answers differ", file=sys.stderr)
                return 1
            if options.keep:
                print("\nThe server keeps running. Ctrl-C ends it.")
                with contextlib.suppress(KeyboardInterrupt):
                    server.wait()
    print("\ndone")
    return 0


@contextlib.contextmanager
def serving(ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`slipstream serve` as a process of its own, drained at the end."""
    command = [sys.executable, "-m", "slipstream.cli", "serve", "--ready-file", str(ready)]
    server = subprocess.Popen(command, start_new_session=True)
    try:
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        server.wait()


def wait_for(ready: Path, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The address of the server, once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if server.poll() is not None:
            sys.exit(f"slipstream serve ended with code {server.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {START_TIMEOUT_S} s")
        time.sleep(0.05)
    address: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
    return address


def generate(url: str) -> str:
    """One answer at once, over HTTP."""
    print(f"\n--- HTTP generate: {PROMPT!r}")
    watch = Stopwatch()
    with post(f"{url}/generate", FIELDS) as response:
        watch.show(json.load(response)["text_output"])
    watch.report()
    return watch.text


def generate_stream(url: str) -> str:
    """Server-sent events over HTTP."""
    print(f"\n--- HTTP generate_stream: {PROMPT!r}")
    watch = Stopwatch()
    with post(f"{url}/generate_stream", {**FIELDS, "stream": True}) as response:
        for line in response:
            if line.startswith(b"data:"):
                watch.show(json.loads(line[5:]).get("text_output", ""))
    watch.report()
    return watch.text


def stream_grpc(url: str) -> str:
    """A gRPC stream."""
    print(f"\n--- gRPC stream: {PROMPT!r}")
    with StreamingClient(url) as client:
        watch = Stopwatch()
        for response in client.stream({**FIELDS, "stream": True}):
            watch.show(response["text_output"])
    watch.report()
    return watch.text


def post(url: str, fields: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(fields).encode())
    return urllib.request.urlopen(request, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
