# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``slipstream serve``."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from slipstream.cli.console import note, say
from slipstream.cli.flags import with_config
from slipstream.cli.serving import Prepared, prepare, start, wait_until_ready, working_folder
from slipstream.config import SlipstreamConfig
from slipstream.server import Ports, ServerError, TritonProcess

_LIVENESS_PERIOD_S = 2.0
# A server that took a fatal signal can hang instead of exiting; so many checks decide it.
_FAILED_CHECKS = 15


class _Stopper:
    """SIGINT and SIGTERM: the first drains the server, the second kills it."""

    def __init__(self, process: TritonProcess) -> None:
        self.requested = False
        self.loading = True
        self._process = process
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._process.kill()
            return
        self.requested = True
        os.write(2, b"\ndraining; once more to stop at once\n")
        if self.loading:
            self._process.terminate()  # otherwise _watch sees it, and drains first


@with_config("model", "scheduler", "kv_cache", "worker", "text", "repository", "server")
def serve(
    config: SlipstreamConfig,
    *,
    model: Annotated[
        str | None,
        typer.Argument(help="Hugging Face directory or hub id; without one: the demo model"),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="write the model repository here and keep it")
    ] = None,
    force: Annotated[bool, typer.Option(help="replace a repository that differs")] = False,
    log: Annotated[Path | None, typer.Option(help="the server's log")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="write ports and process id here, as JSON, once ready")
    ] = None,
    triton_arg: Annotated[
        list[str] | None, typer.Option(help="passed to tritonserver; repeatable")
    ] = None,
) -> None:
    """Serve a checkpoint over gRPC and HTTP. Ctrl-C drains, twice stops at once."""
    with working_folder(repository) as folder:
        log_file = log or folder.parent / f"{folder.name}.log"
        prepared = prepare(config, folder, log_file, force=force, extra=tuple(triton_arg or ()))
        with start(prepared) as process:
            stopper = _Stopper(process)
            try:
                seconds = wait_until_ready(process, prepared)
                stopper.loading = False
                note(f"ready in {seconds:.1f} s")
                _introduce(prepared, process.ports)
                if ready_file is not None:
                    _write_ready_file(ready_file, prepared, process)
                _watch(process, stopper)
            except ServerError:
                if not stopper.requested:
                    raise


def _watch(process: TritonProcess, stopper: _Stopper) -> None:
    """Returns when the server ended as asked; raises ServerError when it failed."""
    failed, next_check = 0, time.monotonic()
    while (code := process.poll()) is None:
        time.sleep(0.1)
        if stopper.requested:
            process.drain()
            return
        if time.monotonic() < next_check:
            continue
        failed = 0 if process.is_live() else failed + 1
        next_check = time.monotonic() + _LIVENESS_PERIOD_S
        if failed >= _FAILED_CHECKS:
            process.kill()
            raise ServerError(f"tritonserver no longer answers; killed\n{process.explain()}")
    if not stopper.requested:
        raise ServerError(f"tritonserver ended with code {code}\n{process.explain()}")


def _introduce(prepared: Prepared, ports: Ports) -> None:
    """What to type to see it work."""
    host = prepared.options.host
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    body = json.dumps(
        {
            "text_input": "Once upon a time",
            "max_tokens": 40,
            "stream": True,
            "exclude_input_in_output": True,
        }
    )
    say(f"HTTP  http://{host}:{ports.http}   gRPC  {host}:{ports.grpc}")
    say(f"metrics  http://{host}:{ports.metrics}/metrics   log  {prepared.options.log}")
    say()
    say(f"curl -N http://{host}:{ports.http}/v2/models/ensemble/generate_stream -d '{body}'")
    say()
    say(
        "python -c 'import json, urllib.request as u; print(json.load(u.urlopen("
        f'"http://{host}:{ports.http}/v2/models/ensemble/generate", '
        'json.dumps({"text_input": "Once upon a time", "max_tokens": 40}).encode()))'
        '["text_output"])\''
    )
    say()
    say(f"slipstream chat --url {host}:{ports.grpc}")


def _write_ready_file(file: Path, prepared: Prepared, process: TritonProcess) -> None:
    ports = process.ports
    facts = {
        "host": prepared.options.host,
        "http": ports.http,
        "grpc": ports.grpc,
        "metrics": ports.metrics,
        "pid": os.getpid(),
        "server_pid": process.pid,
        "repository": str(prepared.repository),
    }
    partial = file.with_suffix(file.suffix + ".part")  # readers see all of it or nothing
    partial.write_text(json.dumps(facts), encoding="utf-8")
    partial.replace(file)
