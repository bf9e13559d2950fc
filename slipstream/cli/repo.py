# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``slipstream repo``: build, lint and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.console import note, say, table
from slipstream.cli.flags import with_config
from slipstream.cli.serving import command_to_serve
from slipstream.config import SlipstreamConfig
from slipstream.repository import build_repository, lint_repository, resolve
from slipstream.repository.plan import make_plan

repo_app = typer.Typer(help="Make and check model repositories.", no_args_is_help=True)

Model = Annotated[
    str | None,
    typer.Argument(help="Hugging Face directory or hub id; without one: the demo model"),
]


@repo_app.command()
@with_config("model", "scheduler", "kv_cache", "worker", "text", "repository")
def build(
    config: SlipstreamConfig,
    *,
    model: Model = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    force: Annotated[bool, typer.Option(help="replace files that differ")] = False,
) -> None:
    """Write the model repository of a checkpoint."""
    for file in build_repository(resolve(config), output, force=force):
        say(str(file))
    note(f"serve it: {command_to_serve(config, output)}")


@repo_app.command()
def lint(
    folder: Annotated[Path, typer.Argument(help="a model repository", file_okay=False)],
    strict: Annotated[bool, typer.Option(help="warnings fail, too")] = False,
) -> None:
    """Find the faults of a model repository, one per line."""
    findings = lint_repository(folder)
    for finding in findings:
        say(str(finding))
    if not findings:
        note("no findings")
    if any(strict or finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@repo_app.command()
@with_config("model", "scheduler", "kv_cache")
def plan(config: SlipstreamConfig, *, model: Model = None) -> None:
    """Show the memory that serving takes, without loading anything."""
    result = make_plan(resolve(config))
    table(result.rows())
