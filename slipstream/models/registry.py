# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which family a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.families import (
    cohere,
    exaone,
    gemma,
    glm,
    gpt2,
    granite,
    llama,
    mistral,
    neox,
    olmo,
    phi,
    qwen,
    smollm,
    starcoder,
)
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.FAMILY,
    exaone.FAMILY,
    olmo.FAMILY,
    granite.FAMILY,
    glm.GLM,
    glm.FAMILY,
    cohere.COHERE,
    cohere.COHERE2,
    starcoder.FAMILY,
    smollm.FAMILY,
    gpt2.FAMILY,
    neox.FAMILY,
)

_BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}


def describe(values: Mapping[str, Any]) -> tuple[ArchSpec, Family]:
    """What the object in a config.json says. Raises CheckpointError naming the field at fault."""
    config = ConfigReader(values)
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list):
        raise config.invalid("architectures", "a list of names")
    name, family = family_of([str(entry) for entry in architectures])
    return family.arch_spec(config, name), family


def family_of(architectures: list[str]) -> tuple[str, Family]:
    """The first listed architecture that is supported. Raises CheckpointError if none is."""
    for name in architectures:
        if name in _BY_ARCHITECTURE:
            return name, _BY_ARCHITECTURE[name]
    listed = ", ".join(architectures) or "none"
    raise CheckpointError(
        f"config.json: architectures: {listed} is not supported; supported: "
        f"{', '.join(sorted(_BY_ARCHITECTURE))}"
    )
