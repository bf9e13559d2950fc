#!/usr/bin/env python3
# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes model_repo_templates/ from the tables in slipstream.repository."""

from collections.abc import Mapping
from pathlib import Path

from slipstream.repository.render import NAMING
from slipstream.repository.templates import render_fused_templates, render_templates


def main() -> None:
    root = Path(__file__).resolve().parent.parent / "model_repo_templates"
    for naming in NAMING:
        _write(root / naming, render_templates(naming))
        _write(root / f"{naming}_fused", render_fused_templates(naming))


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for model, text in texts.items():
        version = folder / model / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / ".gitkeep").touch()
        (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
