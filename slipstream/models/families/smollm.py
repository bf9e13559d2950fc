# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolLM 3: Llama with some layers that know no positions."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import (
    read_masks,
    read_spec,
    rms_norm,
    with_masks,
    without_rope,
)
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = config.with_defaults(rope_theta=2e6, num_key_value_heads=4, tie_word_embeddings=True)
    spec = read_spec(config, architecture, norm=rms_norm(config))
    interval = config.positive("no_rope_layer_interval", 4)
    default = [int((index + 1) % interval != 0) for index in range(spec.num_layers)]
    rotated = config.flags("no_rope_layers", default)  # 1 means rotated, whatever the name says
    spec = without_rope(spec, lambda index, _: not rotated[index])
    if not config.get("use_sliding_window", bool, False):
        config.strings("layer_types", ("full_attention",))
        return spec
    if not config.has("sliding_window"):
        raise config.invalid("sliding_window", "a number, as use_sliding_window is true")
    masks = read_masks(config, spec.num_layers, lambda index: not rotated[index])
    return with_masks(spec, masks)


FAMILY = Family("SmolLM 3", ("SmolLM3ForCausalLM",), arch_spec, llama.WEIGHTS)
