# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What lint reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: in which file, at which key, and what to do about it."""

    file: Path
    key: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else str(self.file)
        return f"{self.severity}: {where}: {' '.join(self.message.split())}"


@dataclass(slots=True)
class Report:
    """Collects the findings of one file."""

    file: Path
    findings: list[Finding] = field(default_factory=list)

    def error(self, key: str, message: str) -> None:
        """The server would not load this, or a request would fail."""
        self.findings.append(Finding(self.file, key, message, "error"))

    def warning(self, key: str, message: str) -> None:
        """It loads, but not as a generated repository would."""
        self.findings.append(Finding(self.file, key, message, "warning"))
