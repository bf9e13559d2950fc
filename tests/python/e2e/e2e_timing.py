# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Bounds on times, tested on machines that may do other things meanwhile."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")
LOG = logging.getLogger(__name__)
_TRIES = 3


class LateError(AssertionError):
    """Something took longer than it may."""


def check_time(took_s: float, limit_s: float, what: str) -> None:
    """Raises LateError from the limit on."""
    if took_s >= limit_s:
        raise LateError(f"{what} took {took_s:.3f} s of less than {limit_s} s")


def best_of_three(test: Callable[P, None]) -> Callable[P, None]:
    """Runs a test again if the only thing wrong is a LateError.

    A machine that is busy with other things delays one run; what the code itself does too late
    is late each time.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(_TRIES - 1):
            try:
                return test(*args, **kwargs)
            except LateError as error:
                LOG.warning("once more: %s", error)
        return test(*args, **kwargs)

    return run
