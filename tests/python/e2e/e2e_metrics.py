# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading Prometheus text, and waiting for what it shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_POLL_S = 0.01

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Metrics:
    """Samples by name and labels; types by family."""

    samples: dict[tuple[str, Labels], float]
    types: dict[str, str]

    def value(self, name: str, **labels: str) -> float:
        """The one sample with exactly these labels, and `version="1"` where `model` is given."""
        if "model" in labels:
            labels.setdefault("version", "1")
        return self.samples[name, frozenset(labels.items())]

    def label_sets(self, name: str, model: str) -> set[Labels]:
        """The labels of every sample of one model."""
        return {
            labels for known, labels in self.samples if known == name and ("model", model) in labels
        }


def parse_metrics(text: str) -> Metrics:
    samples: dict[tuple[str, Labels], float] = {}
    types: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split()
            types[family] = kind
        elif line and not line.startswith("#"):
            match = _SAMPLE.match(line)
            assert match, line
            labels = frozenset(_LABEL.findall(match["labels"] or ""))
            assert (match["name"], labels) not in samples, f"twice: {line}"
            samples[match["name"], labels] = float(match["value"])
    return Metrics(samples, types)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Polls until the condition holds; returns the seconds it took, fails after the timeout."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(_POLL_S)
    return time.monotonic() - start
