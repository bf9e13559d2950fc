#!/usr/bin/env python3
# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Starts a server of an existing model repository in the background (slipstream/cli/launch.py).

    launch_triton_server.py --model_repo DIR [--http_port PORT] …

Any Python may run it: where the package is not installed, that of ``./scripts/setup`` takes over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ENVIRONMENT = (Path(__file__).resolve().parents[1] / ".venv").resolve()


def run() -> int:
    try:
        from slipstream.cli.launch import main
    except ModuleNotFoundError as error:
        if error.name != "slipstream":
            raise
        python = _ENVIRONMENT / "bin" / "python"
        if python.exists() and Path(sys.prefix).resolve() != _ENVIRONMENT:
            os.execv(python, [str(python), *sys.argv])
        print(
            f"error: {sys.executable} has no package slipstream: run ./scripts/setup, or "
            "`pip install .` for this Python",
            file=sys.stderr,
        )
        return 1
    return main()


if __name__ == "__main__":
    sys.exit(run())
