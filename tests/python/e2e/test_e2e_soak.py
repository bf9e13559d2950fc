# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A soak of seconds: every way of asking, a killed worker, the checks and the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "soak" / "soak.py"
SECONDS = 18


def test_a_short_soak_passes_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "soak.html"
    options = ["--load-only", "--minutes", str(SECONDS / 60), "--report", str(report)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scripted, overload, demo = json.loads(report.with_suffix(".json").read_text())["phases"]
    ways = {"grpc_stream", "grpc_unary", "http", "http_stream", "bad", "cancel"}
    assert {answer["way"] for answer in scripted["answers"]} == ways
    assert {answer["way"] for answer in overload["answers"]} == {"served", "refused"}
    assert len(demo["kills"]) == 1
    assert demo["answers"][-1]["at"] > demo["kills"][0]  # served again
    assert report.read_text().count("<svg") == 3
