# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Damaged versions of a config.pbtxt: every key deleted, every key and name misspelt."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAMED = re.compile(r'(\s*(?:name|key|value|model_name): ")([^"]+)(".*)')
_FIELD = re.compile(r"(\s*)(\w+)(.*)")


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of what was done and the damaged text."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.strip() == "}":
            continue
        before, after = lines[:index], lines[_end_of_block(lines, index) + 1 :]
        yield f"delete line {index + 1}: {line.strip()}", "\n".join([*before, *after])
        match = _FIELD.match(line)
        assert match is not None
        renamed = f"{match[1]}{match[2]}x{match[3]}"
        rest = lines[index + 1 :]
        yield f"rename line {index + 1}: {line.strip()}", "\n".join([*before, renamed, *rest])
        if named := _NAMED.match(line):
            misspelt = f"{named[1]}{named[2]}x{named[3]}"
            yield (
                f"misspell line {index + 1}: {line.strip()}",
                "\n".join([*before, misspelt, *rest]),
            )


def _end_of_block(lines: list[str], index: int) -> int:
    depth = 0
    for end in range(index, len(lines)):
        depth += lines[end].count("{") - lines[end].count("}")
        if depth <= 0:
            return end
    raise AssertionError("unbalanced braces")
