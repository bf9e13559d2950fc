# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The documentation's table of families is the one that the tests make."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_cases import CASES, EXAMPLES
from family_table import DOCUMENTS, table, with_table

from slipstream.models.registry import FAMILIES


def test_every_family_is_proved_and_has_examples() -> None:
    names = {family.name for family in FAMILIES}
    assert {case.family for case in CASES} == names
    assert EXAMPLES.keys() == names


def test_every_architecture_is_in_the_table() -> None:
    rows = table().splitlines()
    for family in FAMILIES:
        for architecture in family.architectures:
            assert any(f"`{architecture}`" in row for row in rows)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_the_present_table(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text == with_table(text), "run scripts/families_table"
