# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Mixed load on real servers for minutes, and whether they hold no more afterwards than before."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "python" / "e2e"))

from e2e_metrics import wait_for  # noqa: E402
from e2e_recipes import DEMO, SCRIPTED  # noqa: E402
from e2e_server import Recipe, Server  # noqa: E402
from soak_checks import check_count, check_held, check_idle, wait_until_idle  # noqa: E402
from soak_load import Load, Targets  # noqa: E402
from soak_overload import run_overload  # noqa: E402
from soak_report import Check, Phase, write_report  # noqa: E402
from soak_sample import Sampler, take  # noqa: E402

CLIENTS = 8
DEMO_SHARE = 0.17  # of the time
OVERLOAD_SHARE = 0.08  # a minute of 14
SCRIPTED_SHARE = 1 - DEMO_SHARE - OVERLOAD_SHARE
GRACE_S = 2.0
LONG_FORMS = (
    ("./scripts/test", "--all", "-m", "slow and not gpu", "tests/python/e2e"),
    ("build/debug/slipstream_simulate", "--workloads", "100000", "--seed", "1"),
    ("build/debug/slipstream_simulate", "--requests", "1000000"),
    ("build/debug/slipstream_simulate", "--inject"),
    ("build/editable/slipstream_fuzz_replay",),
    ("build/editable/slipstream_tests", "--no-skip", "-tc=cancel: a million*"),
)


def run_phase(name: str, recipe: Recipe, targets: Targets, seconds: float, kills: int) -> Phase:
    """Load on a server of its own; its worker is killed at even distances if `kills` says so."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(recipe, Path(folder))
        try:
            zero = time.monotonic()
            before = take(server, targets.llm, 0, 0)
            load = Load(server, targets, CLIENTS, zero)
            sampler = Sampler(server, targets.llm, load.answers, zero)
            killed = []
            for turn in range(1, kills + 1):
                time.sleep(max(0, zero + seconds * turn / (kills + 1) - time.monotonic()))
                load.faults_since = time.monotonic()
                [worker] = server.workers()
                worker.kill()
                killed.append(time.monotonic() - zero)
                wait_for(lambda: server.is_ready(targets.llm), 60, "the worker is replaced")
                time.sleep(GRACE_S)  # the requests that the kill hit have ended
                load.faults_since = float("inf")
            time.sleep(max(0, zero + seconds - time.monotonic()))
            samples = sampler.stop()
            load.stop()

            wait_until_idle(server, targets.llm)
            after = take(server, targets.llm, time.monotonic() - zero, len(load.answers))
            phase = Phase(name, [before, *samples, after], load.answers, killed, load.num_errors)
            phase.checks = [
                Check("requests were answered", bool(load.answers), str(len(load.answers))),
                Check(
                    "no unexpected errors", not load.unexpected, "; ".join(load.unexpected) or "0"
                ),
                *check_idle(before, after),
                *check_held(samples),
            ]
            if not kills:
                phase.checks.append(check_count(len(load.answers), seconds))
            enough = len(samples) >= seconds / 2
            phase.checks.append(Check("a sample every second", enough, str(len(samples))))
        finally:
            code = server.stop()
        phase.checks.append(Check("the server stops with code 0", code == 0, str(code)))
        return phase


def run_long_form(command: Sequence[str]) -> Check:
    """A command of the repository, with its last line; of one that fails the last twenty."""
    name = " ".join(command)
    if not os.access(ROOT / command[0], os.X_OK):
        return Check(name, False, "is not built: see CONTRIBUTING.md")
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    passed = done.returncode == 0
    told = "\n".join(done.stdout.strip().splitlines()[-1 if passed else -20 :])
    return Check(name, passed, f"exit code {done.returncode}: {told}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of load, in all")
    parser.add_argument("--report", type=Path, default=Path("soak.html"), metavar="FILE.html")
    parser.add_argument("--load-only", action="store_true", help="without the long forms of tests")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes}: must be above 0")
    if options.report.suffix != ".html":
        parser.error(f"--report {options.report}: must end in .html")
    long_forms = [] if options.load_only else [run_long_form(command) for command in LONG_FORMS]
    seconds = options.minutes * 60
    scripted = Targets(unary="unary", paced="paced")
    phases = [
        run_phase("scripted worker", SCRIPTED, scripted, seconds * SCRIPTED_SHARE, kills=0),
        run_overload(seconds * OVERLOAD_SHARE),
        run_phase("demo model", DEMO, Targets(), seconds * DEMO_SHARE, kills=1),
    ]
    write_report(options.report, phases, long_forms)
    every = [*long_forms, *(c for phase in phases for c in phase.checks)]
    for result in every:
        print(f"{'pass' if result.passed else 'FAIL'}  {result.name}: {result.numbers}")
    print(f"wrote {options.report}")
    return 0 if all(result.passed for result in every) else 1


if __name__ == "__main__":
    sys.exit(main())
