# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What must hold of a server that was under load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from e2e_metrics import wait_for
from e2e_server import Server
from soak_report import Check
from soak_sample import Sample, take

WARM_UP = 1 / 3  # of a phase, which its slope leaves out
SLOPE_LIMIT = 64  # bytes per request
SLOPE_MIN_ANSWERS = 20_000  # with fewer, the pages of the allocator hide 64 bytes per request
SLACK_THREADS = 4  # gRPC's pool grows and shrinks
SLACK_DESCRIPTORS = 8
SLACK_SHM = 1 << 20
QUIET_RATE = 320  # requests a second that the scripted worker serves on two quiet cores
MANY_ANSWERS = 200_000  # in one phase; asked for where the time is enough at QUIET_RATE


def slope(samples: Sequence[Sample]) -> float:
    """Bytes of the server's resident memory per answered request, least squares."""
    x = np.array([s.answers for s in samples], float)
    y = np.array([s.server_rss for s in samples], float)
    if len(x) < 2 or x.std() == 0:
        return float("nan")
    return float(np.polyfit(x, y, 1)[0])


def is_idle(sample: Sample) -> bool:
    """No used KV tokens, nothing running or waiting."""
    return (sample.kv_used, sample.running, sample.waiting) == (0, 0, 0)


def wait_until_idle(server: Server, model: str) -> None:
    """Once nobody asks any more; 30 s at most."""
    wait_for(lambda: is_idle(take(server, model, 0, 0)), 30, "everything is idle")


def check_idle(before: Sample, after: Sample) -> list[Check]:
    """Once the load has ended."""
    return [
        Check(
            "idle: no used KV tokens, nothing running or waiting",
            is_idle(after),
            f"{after.kv_used}, {after.running}, {after.waiting}",
        ),
        Check(
            "all KV tokens are back",
            after.kv_cached + after.kv_free == before.kv_cached + before.kv_free,
            f"{after.kv_cached} cached + {after.kv_free} free, "
            f"before {before.kv_cached} + {before.kv_free}",
        ),
    ]


def check_held(samples: Sequence[Sample]) -> list[Check]:
    """While it was under load. Connections and threads of the pools come with the load, so that
    what is compared is the load after its warm-up and at its end."""
    late = samples[int(len(samples) * WARM_UP) :]
    if not late:
        return [Check("samples under load", False, "0")]
    rate, counted = slope(late), late[-1].answers - late[0].answers
    is_judged = counted >= SLOPE_MIN_ANSWERS
    fds, threads, shm = (
        (getattr(late[0], n), getattr(late[-1], n)) for n in ("descriptors", "threads", "shm")
    )
    return [
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


def check_count(answers: int, seconds: float) -> Check:
    """Whether the phase made as many requests as a judgement over days wants.

    Fewer fail only where the time was enough for them: a machine that was busy with other things
    leaves too few, and the run is to be repeated.
    """
    is_asked = seconds * QUIET_RATE >= MANY_ANSWERS
    numbers = f"{answers}, {answers / seconds:.0f} a second"
    if not is_asked:
        numbers += f"; not asked for in less than {MANY_ANSWERS / QUIET_RATE:.0f} s"
    return Check(
        f"at least {MANY_ANSWERS} requests in the phase",
        answers >= MANY_ANSWERS or not is_asked,
        numbers,
    )
