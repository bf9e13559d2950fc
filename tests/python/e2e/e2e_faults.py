# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Faults that a worker is told to have, through files that faulty_worker.py looks at."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "faulty_worker.py"


class Faults:
    """The faults of the workers that run under `executable`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        python, program = shlex.quote(sys.executable), shlex.quote(str(PROGRAM))
        self.executable = folder / "python"
        self.executable.write_text(
            "#!/bin/sh\n"
            f'[ "$2" = slipstream.worker ] || exec {python} "$@"\n'
            f'exec {python} {program} {shlex.quote(str(folder))} "$@"\n'
        )
        self.executable.chmod(0o755)

    def at_steps(self, *names: str) -> None:
        """One each at the next steps that a worker receives."""
        self._write("step", "\n".join(names))

    def at_loads(self, *names: str) -> None:
        """One each while the next workers load."""
        self._write("load", "\n".join(names))

    def poison(self, token: int | None) -> None:
        """From now on this token kills the worker that computes it."""
        self._write("poison", "" if token is None else str(token))

    def left(self) -> str:
        """The faults that have not happened."""
        files = (self._folder / name for name in ("step", "load"))
        return "".join(file.read_text() for file in files if file.exists())

    def _write(self, name: str, text: str) -> None:
        new = self._folder / f"{name}.new"
        new.write_text(text)
        new.replace(self._folder / name)  # never half written
