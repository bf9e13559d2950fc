# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The report of a soak: one HTML file with its plots inside, and a JSON of its numbers."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
from soak_load import Answer
from soak_sample import Sample

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

PLOTS = (
    ("resident memory, MiB", ("server_rss", "children_rss"), 1 << 20),
    ("descriptors and threads", ("descriptors", "threads"), 1),
    ("/dev/shm, MiB", ("shm",), 1 << 20),
    ("KV tokens", ("kv_used", "kv_cached", "kv_free"), 1),
    ("requests", ("running", "waiting"), 1),
)


@dataclass(frozen=True)
class Check:
    """One thing that must hold at the end."""

    name: str
    passed: bool
    numbers: str


@dataclass
class Phase:
    """One server's part of a soak."""

    name: str
    samples: list[Sample]
    answers: list[Answer]
    kills: list[float]
    errors: int
    checks: list[Check] = field(default_factory=list)


def write_report(path: Path, phases: Sequence[Phase], long_forms: Sequence[Check]) -> None:
    """Writes PATH and, with the suffix .json, the numbers."""
    numbers = {"long_forms": [asdict(c) for c in long_forms], "phases": [asdict(p) for p in phases]}
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    parts = ["<!doctype html><meta charset=utf-8><title>Soak</title><h1>Soak</h1>"]
    parts.append(_table(long_forms))
    for phase in phases:
        parts.append(f"<h2>{html.escape(phase.name)}</h2>")
        parts.append(f"<p>{len(phase.answers)} requests answered, {phase.errors} errors</p>")
        parts += [_table(phase.checks), _plots(phase)]
    path.write_text("\n".join(parts), encoding="utf-8")


def _table(checks: Sequence[Check]) -> str:
    rows = "".join(
        f"<tr><td>{'pass' if c.passed else '<b>FAIL</b>'}<td>{html.escape(c.name)}"
        f"<td>{html.escape(c.numbers)}"
        for c in checks
    )
    return f"<table>{rows}</table>"


def _plots(phase: Phase) -> str:
    """Lines over seconds; a dotted line where a worker was killed."""
    figure, axes = pyplot.subplots(len(PLOTS) + 1, 1, figsize=(9, 15), layout="constrained")
    at = [sample.at for sample in phase.samples]
    for axis, (title, names, unit) in zip(axes, PLOTS, strict=False):
        for name in names:
            axis.plot(at, [getattr(s, name) / unit for s in phase.samples], label=name)
        axis.set_title(title)
        axis.legend(loc="upper left")
    for way in sorted({answer.way for answer in phase.answers}):
        mine = [answer for answer in phase.answers if answer.way == way]
        axes[-1].plot([a.at for a in mine], [a.first_s for a in mine], ".", ms=2, label=way)
    axes[-1].set(title="seconds to the first response", yscale="log", xlabel="seconds")
    if phase.answers:
        axes[-1].legend(loc="upper left")
    for axis in axes:
        for kill in phase.kills:
            axis.axvline(kill, color="black", linestyle=":")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
