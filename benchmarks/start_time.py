# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How long `slipstream serve` takes from the command to a server that is ready.

.venv/bin/python benchmarks/start_time.py [--runs 3] [-- further arguments of `slipstream serve`]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 300.0


def start_once(arguments: list[str]) -> float:
    """Seconds until the ready file is there. Raises RuntimeError if the server does not start."""
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "slipstream.cli", "serve", "--ready-file", str(ready)]
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while not ready.exists():
                if process.poll() is not None or time.monotonic() - begin > LIMIT_S:
                    process.kill()
                    raise RuntimeError(f"slipstream serve failed:\n{process.communicate()[1]}")
                time.sleep(0.01)
            return time.monotonic() - begin
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("serve", nargs="*", help="arguments of `slipstream serve`, after --")
    options = parser.parse_args()
    seconds = [start_once(options.serve) for _ in range(options.runs)]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    each = ", ".join(f"{value:.1f}" for value in seconds)
    print(f"ready after {statistics.median(seconds):.1f} s (median of {each})")


if __name__ == "__main__":
    main()
