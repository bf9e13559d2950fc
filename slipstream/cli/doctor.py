# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``slipstream doctor``."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from slipstream.cli.checks import CHECKS, Check
from slipstream.cli.console import out

_STYLES = {"ok": "green", "warning": "yellow", "missing": "red"}


def doctor() -> None:
    """Show what is installed, what is missing, and how to fix it."""
    checks = [check() for check in CHECKS]
    out.print(_render(checks), soft_wrap=False)
    missing = [check.name for check in checks if check.state == "missing"]
    if missing:
        out.print(f"cannot serve yet; missing: {', '.join(missing)}", markup=False)
        raise typer.Exit(1)
    out.print("ready to serve", markup=False)


def _render(checks: list[Check]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column()
    grid.add_column(overflow="fold")
    for check in checks:
        detail = Text(check.found)
        if check.fix:
            detail.append(f"\n→ {check.fix}", style="bold")
        grid.add_row(Text(check.state, style=_STYLES[check.state]), Text(check.name), detail)
    return grid
