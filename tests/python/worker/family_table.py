# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of families in the documentation, made of what the tests run."""

from __future__ import annotations

from pathlib import Path

from family_cases import CASES, EXAMPLES, WINDOW
from family_serving import PROMPT, STEPS, TOLERANCE

from slipstream.models.family import Family
from slipstream.models.registry import FAMILIES

ROOT = Path(__file__).parents[3]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "families.md")
_BEGIN, _END = "<!-- families: scripts/families_table -->\n", "<!-- /families -->\n"


def table() -> str:
    """Markdown: what holds for every row, and a row a family."""
    lines = [
        "Each row was compared with transformers' own forward, on tiny random checkpoints of these",
        f"architectures, not on the models named: logits within {TOLERANCE:g} (relative, float32)",
        f"and {STEPS} greedy tokens equal, for requests alone, in a batch of mixed lengths, in",
        "chunks, after a reused prefix, and preempted and recomputed; windows are of",
        f"{WINDOW} tokens and sequences of up to {PROMPT + STEPS}.",
        "",
        "| family | architectures | models such as | proved with |",
        "|---|---|---|---|",
        *map(_row, FAMILIES),
        "",
    ]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """A document with the present table between its marks."""
    before, found, rest = text.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    assert found, f"the document lacks the line {_BEGIN!r}"
    assert closed, f"the document lacks the line {_END!r}"
    return before + _BEGIN + table() + _END + after


def _row(family: Family) -> str:
    names = ", ".join(f"`{name}`" for name in family.architectures)
    shown = "; ".join(case.shows for case in CASES if case.family == family.name)
    return f"| {family.name} | {names} | {EXAMPLES[family.name]} | {shown} |"
