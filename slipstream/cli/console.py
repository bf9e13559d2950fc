# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Output of the command line: results to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from slipstream.server.process import Progress as ProgressCallback

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """A line of the result, as it is."""
    out.print(text, markup=False)


def note(text: str) -> None:
    """A line about what is going on."""
    err.print(text, markup=False)


def table(rows: list[tuple[str, str]], title: str = "") -> None:
    """Pairs of label and value."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, value)
    if title:
        note(title)
    err.print(grid, markup=False, soft_wrap=False)


@contextmanager
def progress_bar(first: str) -> Iterator[ProgressCallback]:
    """A bar to be told the fraction done (0 to 1) and what is being done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(first, total=1.0)

        def update(fraction: float, what: str) -> None:
            bar.update(task, completed=fraction, description=what)

        yield update
