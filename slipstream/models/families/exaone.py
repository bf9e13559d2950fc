# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""EXAONE 4.0: norms after the blocks, and no positions where a window model looks further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import olmo
from slipstream.models.families.common import (
    is_full,
    read_masks,
    read_spec,
    rms_norm,
    with_masks,
    without_rope,
)
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, BlockSpec, QkNormSpec


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.only("attention_bias", False)
    config = config.with_defaults(sliding_window=4096, num_key_value_heads=32)
    spec = read_spec(config, architecture, norm=rms_norm(config, 1e-5))
    spec = spec.with_attention(qk_norm=QkNormSpec(spec.norm))
    spec = replace(spec, block=BlockSpec(pre_norm=False, post_norm=True))
    if not config.has("sliding_window"):
        config.strings("layer_types", ("full_attention",))
        return spec
    masks = read_masks(config, spec.num_layers, _is_sliding(config, spec.num_layers))
    return without_rope(with_masks(spec, masks), is_full)


def _is_sliding(config: ConfigReader, num_layers: int) -> Callable[[int], bool]:
    """All layers but each n-th, or as letters L and G say in turn, the last one G whatever."""
    if not config.is_text("sliding_window_pattern"):
        interval = config.positive("sliding_window_pattern", 4)
        return lambda index: (index + 1) % interval != 0
    letters = config.get("sliding_window_pattern", str)
    if not letters or set(letters) - {"L", "G"}:
        raise config.invalid("sliding_window_pattern", "a number, or letters L and G")
    return lambda index: letters[index % len(letters)] == "L" and index < num_layers - 1


FAMILY = Family("EXAONE 4.0", ("Exaone4ForCausalLM",), arch_spec, olmo.WEIGHTS)
