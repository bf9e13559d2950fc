# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The interface's documentation names everything there is."""

from __future__ import annotations

import re
from pathlib import Path

from slipstream.config import all_options

ROOT = Path(__file__).parents[3]
INTERFACE = (ROOT / "docs" / "interface.md").read_text()


def test_every_option_is_documented() -> None:
    assert [name for name in all_options() if f"| `{name}` |" not in INTERFACE] == []


def test_every_metric_family_is_documented() -> None:
    files = [ROOT / "backend" / "triton" / name for name in ("metric_rows.cc", "expert_metrics.cc")]
    source = "".join(file.read_text() for file in files)
    families = set(re.findall(r'"(slipstream_[a-z_]+)"', source))
    assert len(families) > 10
    assert sorted(f for f in families if f"`{f}`" not in INTERFACE) == []


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
