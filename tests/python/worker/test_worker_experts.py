# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker tells of its experts: how often, how much, and never by waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slipstream.worker.expert_report import ExpertReport


class FakeReading:
    """A copy that is done when the test says so."""

    def __init__(self, counts: torch.Tensor) -> None:
        self.counts = counts.clone()
        self.copied = False

    def done(self) -> bool:
        return self.copied


class FakeLoad:
    """An ExpertLoad of one layer of three experts."""

    def __init__(self) -> None:
        self.tokens = torch.zeros(1, 3, dtype=torch.int64)
        self.readings: list[FakeReading] = []

    def counts(self) -> torch.Tensor:
        return self.tokens.clone()

    def begin_reading(self) -> FakeReading:
        self.readings.append(FakeReading(self.tokens))
        return self.readings[-1]


@pytest.fixture
def load() -> FakeLoad:
    return FakeLoad()


def step(load: FakeLoad, report: ExpertReport, tokens: list[int]) -> None:
    load.tokens += torch.tensor([tokens])
    report.note_step()


def told(report: ExpertReport, now: float) -> list[int] | None:
    data = report.take(now)
    return None if data is None else np.frombuffer(data, "<i8").tolist()


def test_what_was_computed_since_the_report_before(load: FakeLoad) -> None:
    load.tokens += 7  # before the report began: nobody's business
    report = ExpertReport(load, period_s=1.0)
    assert report.due_in(100.0) is None
    step(load, report, [1, 0, 2])
    assert report.due_in(100.0) == 0
    assert told(report, 100.0) is None
    load.readings[0].copied = True
    assert told(report, 100.0) == [1, 0, 2]
    assert report.due_in(100.0) is None
    step(load, report, [0, 5, 0])
    step(load, report, [1, 0, 0])
    assert report.due_in(100.25) == 0.75
    assert told(report, 100.25) is None
    assert len(load.readings) == 1
    assert told(report, 101.0) is None
    load.readings[1].copied = True
    assert told(report, 101.0) == [1, 5, 0]


def test_a_busy_device_is_not_waited_for(load: FakeLoad) -> None:
    report = ExpertReport(load, period_s=1.0)
    step(load, report, [1, 1, 1])
    assert told(report, 100.0) is None
    for now in (100.5, 102.0, 104.0):  # one copy at a time, however long it takes
        step(load, report, [1, 0, 0])
        assert report.due_in(now) == pytest.approx(0.001)
        assert told(report, now) is None
    assert len(load.readings) == 1
    load.readings[0].copied = True
    assert told(report, 104.5) == [1, 1, 1]
    assert report.due_in(104.5) == 0
    assert told(report, 104.5) is None
    load.readings[1].copied = True
    assert told(report, 104.6) == [3, 0, 0]


def test_steps_that_computed_nothing_are_no_news(load: FakeLoad) -> None:
    report = ExpertReport(load)
    step(load, report, [0, 0, 0])
    assert told(report, 5.0) is None
    load.readings[0].copied = True
    assert told(report, 5.0) is None
    assert report.due_in(5.0) is None
