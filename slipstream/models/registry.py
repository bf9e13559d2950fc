# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which family a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slipstream.models import llama
from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.spec import ArchSpec, WeightRule


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: how to read its configuration and what its tensors are called.

    ``ignored_tensors`` are name endings of checkpoint tensors that carry no weights.
    """

    arch_spec: Callable[[ConfigReader, str], ArchSpec]
    weight_rules: Callable[[ArchSpec], list[WeightRule]]
    ignored_tensors: tuple[str, ...] = ()


_LLAMA = Family(llama.arch_spec, llama.weight_rules, llama.IGNORED_TENSORS)

FAMILIES: dict[str, Family] = dict.fromkeys(llama.ARCHITECTURES, _LLAMA)


def family_of(architectures: list[str]) -> tuple[str, Family]:
    """The first listed architecture that is supported. Raises CheckpointError if none is."""
    for name in architectures:
        if name in FAMILIES:
            return name, FAMILIES[name]
    listed = ", ".join(architectures) or "none"
    raise CheckpointError(
        f"config.json: architectures: {listed} is not supported; supported: "
        f"{', '.join(sorted(FAMILIES))}"
    )
