# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""When a worker tells its executor what its experts computed."""

from __future__ import annotations

import torch

from slipstream.layers.moe import ExpertLoad, LoadReading

_PERIOD_S = 1.0
_RETRY_S = 0.001


class ExpertReport:
    """Counts of experts since the report before: at most one a period, none when nothing was
    computed, and never waiting for the device. Times are of any monotonic clock, in seconds."""

    def __init__(self, load: ExpertLoad, period_s: float = _PERIOD_S) -> None:
        self._load = load
        self._period_s = period_s
        self._next = 0.0
        self._stepped = False  # something may have been counted since the last reading began
        self._reading: LoadReading | None = None
        self._told = load.counts()

    def note_step(self) -> None:
        """A step may have counted something."""
        self._stepped = True

    def due_in(self, now: float) -> float | None:
        """Seconds until :meth:`take` is worth a call; None: not before the next step."""
        if self._reading is not None:
            return _RETRY_S
        return max(0.0, self._next - now) if self._stepped else None

    def take(self, now: float) -> bytes | None:
        """The report that is due, as int64 ``[layers, experts]``; None if there is none."""
        if self._reading is None and self._stepped and now >= self._next:
            self._next = now + self._period_s
            self._stepped = False
            self._reading = self._load.begin_reading()
        if self._reading is None or not self._reading.done():
            return None
        counts, self._reading = self._reading.counts, None
        computed, self._told = counts - self._told, counts
        return computed.numpy().tobytes() if torch.any(computed) else None
