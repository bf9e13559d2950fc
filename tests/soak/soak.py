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

import numpy as np  # noqa: E402
from e2e_metrics import wait_for  # noqa: E402
from e2e_recipes import DEMO, SCRIPTED  # noqa: E402
from e2e_server import Recipe, Server  # noqa: E402
from soak_load import Load, Targets  # noqa: E402
from soak_report import Check, Phase, write_report  # noqa: E402
from soak_sample import Sample, Sampler, take  # noqa: E402

CLIENTS = 8
DEMO_SHARE = 0.25  # of the time
WARM_UP = 1 / 3  # of a phase, which its slope leaves out
SLOPE_LIMIT = 64  # bytes per request
SLOPE_MIN_ANSWERS = 20_000  # with fewer, the pages of the allocator hide 64 bytes per request
GRACE_S = 2.0
SLACK_THREADS = 4  # gRPC's pool grows and shrinks
SLACK_DESCRIPTORS = 8
SLACK_SHM = 1 << 20
LONG_FORMS = (
    ("./scripts/test", "--all", "-m", "slow and not gpu", "tests/python/e2e"),
    ("build/debug/slipstream_simulate", "--workloads", "100000", "--seed", "1"),
    ("build/debug/slipstream_simulate", "--requests", "1000000"),
    ("build/debug/slipstream_simulate", "--inject"),
    ("build/editable/slipstream_fuzz_replay",),
    ("build/editable/slipstream_tests", "--no-skip", "-tc=cancel: a million*"),
)


def slope(samples: Sequence[Sample]) -> float:
    """Bytes of the server's resident memory per answered request, least squares."""
    x = np.array([s.answers for s in samples], float)
    y = np.array([s.server_rss for s in samples], float)
    if len(x) < 2 or x.std() == 0:
        return float("nan")
    return float(np.polyfit(x, y, 1)[0])


def check(before: Sample, after: Sample, samples: list[Sample], load: Load) -> list[Check]:
    """What must hold of a server that has become idle again."""
    late = samples[int(len(samples) * WARM_UP) :]
    rate = slope(late)
    counted = late[-1].answers - late[0].answers if late else 0
    is_judged = counted >= SLOPE_MIN_ANSWERS
    # Connections and threads of the pools come with the load: the baseline is under load.
    fds, threads, shm = (
        (getattr(late[0], n), getattr(late[-1], n)) for n in ("descriptors", "threads", "shm")
    )
    return [
        Check("requests were answered", bool(load.answers), str(len(load.answers))),
        Check("no unexpected errors", not load.unexpected, "; ".join(load.unexpected) or "0"),
        Check(
            "idle: no used KV tokens, nothing running or waiting",
            (after.kv_used, after.running, after.waiting) == (0, 0, 0),
            f"{after.kv_used}, {after.running}, {after.waiting}",
        ),
        Check(
            "all KV tokens are back",
            after.kv_cached + after.kv_free == before.kv_cached + before.kv_free,
            f"{after.kv_cached} cached + {after.kv_free} free, "
            f"before {before.kv_cached} + {before.kv_free}",
        ),
        Check(
            f"resident memory grows by at most {SLOPE_LIMIT} bytes per request after warm-up",
            rate <= SLOPE_LIMIT or not is_judged,
            f"{rate:.1f} over {counted} requests"
            + ("" if is_judged else f", not judged below {SLOPE_MIN_ANSWERS}"),
        ),
        Check("descriptors", fds[1] - fds[0] <= SLACK_DESCRIPTORS, f"{fds[0]} to {fds[1]}"),
        Check("threads", threads[1] - threads[0] <= SLACK_THREADS, f"{threads[0]} to {threads[1]}"),
        Check("/dev/shm", shm[1] - shm[0] <= SLACK_SHM, f"{shm[0]} to {shm[1]} bytes"),
    ]


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

            def is_idle() -> bool:
                now = take(server, targets.llm, 0, 0)
                return (now.kv_used, now.running, now.waiting) == (0, 0, 0)

            wait_for(is_idle, 30, "everything is idle")
            after = take(server, targets.llm, time.monotonic() - zero, len(load.answers))
            phase = Phase(name, [before, *samples, after], load.answers, killed, load.num_errors)
            phase.checks = check(before, after, samples, load)
            enough = len(samples) >= seconds / 2
            phase.checks.append(Check("a sample every second", enough, str(len(samples))))
        finally:
            code = server.stop()
        phase.checks.append(Check("the server stops with code 0", code == 0, str(code)))
        return phase


def run_long_form(command: Sequence[str]) -> Check:
    """A command of the repository, with its last line."""
    name = " ".join(command)
    if not os.access(ROOT / command[0], os.X_OK):
        return Check(name, False, "is not built: see CONTRIBUTING.md")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    return Check(name, done.returncode == 0, f"exit code {done.returncode}: {lines[-1]}")


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
        run_phase("scripted worker", SCRIPTED, scripted, seconds * (1 - DEMO_SHARE), kills=0),
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
