# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which family a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.families import (
    cohere,
    deepseek,
    exaone,
    gemma,
    glm,
    gpt2,
    gpt_oss,
    granite,
    llama,
    llama4,
    mistral,
    mixtral,
    neox,
    olmo,
    phi,
    qwen,
    qwen_moe,
    smollm,
    starcoder,
)
from slipstream.models.family import Family
from slipstream.models.kv_scales import without_kv_scheme
from slipstream.models.spec import ArchSpec

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    llama4.FAMILY,
    mixtral.FAMILY,
    qwen_moe.QWEN2_MOE,
    qwen_moe.QWEN3_MOE,
    gpt_oss.FAMILY,
    deepseek.DEEPSEEK_V2,
    deepseek.DEEPSEEK_V3,
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
    values = without_kv_scheme(values)
    config = ConfigReader(values)
    name, family = family_of(_architectures(config, values))
    return family.arch_spec(config, name), family


def has_family(values: Mapping[str, Any]) -> bool:
    """Whether ``describe`` knows an architecture of the object in a config.json."""
    return not _BY_ARCHITECTURE.keys().isdisjoint(_architectures(ConfigReader(values), values))


def _architectures(config: ConfigReader, values: Mapping[str, Any]) -> list[str]:
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list):
        raise config.invalid("architectures", "a list of names")
    return [str(entry) for entry in architectures]


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
