# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Ten times the load that a server can take, for as long as is asked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from e2e_client import prompt
from e2e_flood import Flood
from e2e_recipes import OVERLOADED
from e2e_server import Server
from soak_checks import check_held, check_idle, wait_until_idle
from soak_load import Answer
from soak_report import Check, Phase
from soak_sample import Sampler, take

MODEL = "yielding"  # 4 at once, 10 steps of 5 ms each: 80 requests a second; 16 may wait
SERVED_RATE = 80
RATE = 10 * SERVED_RATE
REFUSED_WITHIN_S = 0.1  # the median, on a machine that is busy with the clients, too


def answers_of(flood: Flood, zero: float) -> list[Answer]:
    """Of each request its answer, refused or served."""
    found = []
    for name, replies in flood.answers.items():
        at, reply = replies[-1]
        way = "refused" if reply.error else "served"
        seconds = at - flood.sent[name]
        found.append(Answer(way, at - zero, seconds, seconds))
    return sorted(found, key=lambda answer: answer.at)


def check_flood(flood: Flood, seconds: float) -> list[Check]:
    """That each request was served or refused, once, and how soon."""
    replies = list(flood.answers.values())
    once = [len(r) == 1 and r[0][1].final for r in replies]
    others = {r[-1][1].error for r in replies} - {""}
    others = {error for error in others if not error.startswith("the queue is full: ")}
    refused, served = flood.seconds(refused=True), flood.seconds(refused=False)
    p50, p99 = np.percentile(refused, [50, 99]) if len(refused) else (np.nan, np.nan)
    return [
        Check(
            "every request is answered, once",
            flood.answers.keys() == flood.sent.keys() and all(once),
            f"{len(flood.sent)} sent, {len(replies)} answered, {sum(once)} of them once",
        ),
        Check("nothing but full queues is refused", not others, "; ".join(others) or "0"),
        Check(
            "half of what can be served is served",
            len(served) >= seconds * SERVED_RATE / 2,
            f"{len(served)} in {seconds:.0f} s",
        ),
        Check(
            f"refused within {REFUSED_WITHIN_S * 1e3:.0f} ms, the median",
            bool(p50 <= REFUSED_WITHIN_S),
            f"{len(refused)}, p50 {p50 * 1e3:.1f}, p99 {p99 * 1e3:.1f} ms",
        ),
    ]


def run_overload(seconds: float) -> Phase:
    """A server of its own under the flood."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(OVERLOADED, Path(folder))
        try:
            zero = time.monotonic()
            before = take(server, MODEL, 0, 0)
            with Flood(server, MODEL, RATE, prompt([5, 6, 7], 10), seconds) as flood:
                sampler = Sampler(server, MODEL, flood.answers, zero)
                time.sleep(seconds)
                samples = sampler.stop()
                flood.stop()

            wait_until_idle(server, MODEL)
            answers = answers_of(flood, zero)
            after = take(server, MODEL, time.monotonic() - zero, len(answers))
            num_refused = sum(answer.way == "refused" for answer in answers)
            phase = Phase("overload", [before, *samples, after], answers, [], num_refused)
            phase.checks = check_flood(flood, seconds)
            phase.checks += [*check_idle(before, after), *check_held(samples)]
        finally:
            code = server.stop()
        phase.checks.append(Check("the server stops with code 0", code == 0, str(code)))
        return phase
