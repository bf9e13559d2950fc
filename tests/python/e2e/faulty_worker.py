# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A Python that runs the worker with faults: ``faulty_worker.py FOLDER -m slipstream.worker ...``.

FOLDER/step and FOLDER/load name faults, one a line. A worker takes the first line of `step` when a
step arrives, that of `load` when its model is half loaded, and does what it says. FOLDER/poison
holds a token id: a step that computes it kills the worker, every time.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slipstream.link import FrameType
from slipstream.worker import loop
from slipstream.worker.channel import Channel


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise RuntimeError("a fault inside a step")


def run_out_of_gpu_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run_out_of_memory() -> None:
    import torch

    torch.empty(1 << 50)  # what torch itself says on a CPU


def run_out_of_python_memory() -> None:
    raise MemoryError


FAULTS: dict[str, Callable[[], None]] = {
    "kill": kill,
    "exception": fail,
    "gpu memory": run_out_of_gpu_memory,
    "memory": run_out_of_memory,
    "python memory": run_out_of_python_memory,
}


class FaultyRunner:
    """A runner whose steps may fail."""

    def __init__(self, folder: Path, channel: Channel, runner: Any) -> None:
        self._folder, self._channel, self._runner = folder, channel, runner

    def launch(self, plan: Any) -> Any:
        poison = read(self._folder / "poison")
        if poison and int(poison) in plan.token_ids:
            kill()
        fault = take(self._folder / "step")
        if fault == "garbage":
            self._channel._sock.sendall(b"\xde\xad\xbe\xef" * 64)
        elif fault:
            FAULTS[fault]()
        return self._runner.launch(plan)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def take(path: Path) -> str:
    """The first line of a file, which loses it."""
    first, _, rest = read(path).partition("\n")
    if first:
        path.write_text(rest)
    return first


def install(folder: Path) -> None:
    """Puts the faults into the worker's loop."""
    run_steps, send_map = loop.run_steps, Channel.send_map

    def run_faulty_steps(channel: Channel, runner: Any, report: Any) -> None:
        run_steps(channel, FaultyRunner(folder, channel, runner), report)  # type: ignore[arg-type]

    def send_map_or_fail(
        channel: Channel, frame_type: FrameType, values: Mapping[str, Any]
    ) -> None:
        send_map(channel, frame_type, values)
        if frame_type is FrameType.PROGRESS and values["fraction"] > 0.5:
            fault = take(folder / "load")
            if fault:
                FAULTS[fault]()

    loop.run_steps = run_faulty_steps
    Channel.send_map = send_map_or_fail  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    _, _, dash_m, module, *arguments = sys.argv
    assert dash_m == "-m", sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
