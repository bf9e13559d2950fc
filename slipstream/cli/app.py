# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: which commands there are, and how errors end them."""

from __future__ import annotations

import sys

import typer

from slipstream.cli.chat import chat
from slipstream.cli.console import note
from slipstream.cli.doctor import doctor
from slipstream.cli.repo import repo_app
from slipstream.cli.serve import serve
from slipstream.errors import SlipstreamError

app = typer.Typer(
    help="Serve large language models on Triton Inference Server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.add_typer(repo_app, name="repo")
app.command()(doctor)
app.command()(chat)


def main() -> None:
    """Runs the command line; errors that a user can mend are one message and exit code 1."""
    try:
        app()
    except SlipstreamError as error:
        note(f"error: {error}")
        sys.exit(1)
