# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Rotary settings of config.json, as transformers 4 or 5 writes them."""

from __future__ import annotations

import math

from slipstream.layers.rope_scaling import (
    LinearScaling,
    ListedScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from slipstream.layers.rotary import RopeSpec, RopeStyle
from slipstream.models.config_reader import ConfigReader

_KINDS = "'default', 'linear', 'llama3', 'yarn' or 'longrope'"


def read_rope(
    config: ConfigReader,
    head_dim: int,
    *,
    partial: bool = False,
    style: RopeStyle = "halves",
    layer_type: str | None = None,
) -> RopeSpec:
    """The rotation of layers, or of those of one ``layer_type`` where it differs by type.

    Raises CheckpointError, also for a ``partial_rotary_factor`` other than 1 unless ``partial``.
    """
    rope = rope_fields(config, layer_type)
    for unread in ("full_attention", "sliding_attention", "mrope_section"):
        rope.only(unread)
    theta = (rope if rope.has("rope_theta") else config).positive_float("rope_theta", 10000.0)
    factor_from = rope if rope.has("partial_rotary_factor") else config
    if not partial:
        factor_from.only("partial_rotary_factor", 1, 1.0)
    factor = factor_from.positive_float("partial_rotary_factor", 1.0)
    dim = int(head_dim * factor)
    if dim % 2 or not 0 < dim <= head_dim:
        raise factor_from.invalid(
            "partial_rotary_factor", f"a share of {head_dim} that is an even number"
        )
    return RopeSpec(theta, dim, style, _read_scaling(config, rope, dim))


def rope_fields(config: ConfigReader, layer_type: str | None = None) -> ConfigReader:
    """The object that holds rotary settings: ``rope_parameters``, or ``rope_scaling`` of old."""
    rope = config.child("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    return rope.child(layer_type) if layer_type is not None and rope.has(layer_type) else rope


def max_positions(config: ConfigReader, rope: RopeSpec | None) -> int:
    """The longest sequence: what the checkpoint says, stretched where its scaling means that."""
    limit = config.positive("max_position_embeddings", 2048)
    scaling = rope.scaling if rope is not None else None
    if isinstance(scaling, LinearScaling):
        return int(limit * scaling.factor)
    if isinstance(scaling, YarnScaling):
        return max(limit, int(scaling.factor * scaling.original_positions))
    if isinstance(scaling, ListedScaling):
        # Past this the checkpoint wants other factors, and what is cached rotated anew.
        return min(limit, _original(config, rope_fields(config), limit))
    return limit


def _read_scaling(config: ConfigReader, rope: ConfigReader, dim: int) -> RopeScaling | None:
    name = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.get(name, str, "default")
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(rope.positive_float("factor"))
    if kind == "llama3":
        return _llama3(config, rope)
    if kind in ("longrope", "su") or rope.has("short_factor"):  # early exports called it yarn
        return _longrope(config, rope, dim)
    if kind == "yarn":
        return _yarn(config, rope)
    raise rope.lacking(name, _KINDS)


def _llama3(config: ConfigReader, rope: ConfigReader) -> Llama3Scaling:
    low = rope.positive_float("low_freq_factor")
    high = rope.positive_float("high_freq_factor")
    if high < low:  # equal in Llama 4: nothing is blended
        raise rope.invalid("high_freq_factor", f"at least low_freq_factor ({low})")
    original = _original(config, rope, config.positive("max_position_embeddings", 2048))
    return Llama3Scaling(rope.positive_float("factor"), low, high, original)


def _yarn(config: ConfigReader, rope: ConfigReader) -> YarnScaling:
    original = _original(config, rope, config.positive("max_position_embeddings", 2048))
    factor = rope.positive_float("factor", _stretch(config, original))
    return YarnScaling(
        factor,
        original,
        rope.positive_float("attention_factor", _yarn_attention_factor(rope, factor)),
        rope.positive_float("beta_fast", 32.0),
        rope.positive_float("beta_slow", 1.0),
        rope.get("truncate", bool, True),
    )


def _yarn_attention_factor(rope: ConfigReader, factor: float) -> float:
    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    mscale, all_dim = (rope.get(name, float, 0.0) for name in ("mscale", "mscale_all_dim"))
    return growth(mscale) / growth(all_dim) if mscale and all_dim else growth(1.0)


def _longrope(config: ConfigReader, rope: ConfigReader, dim: int) -> ListedScaling:
    original = _original(config, rope, config.positive("max_position_embeddings", 2048))
    factor = rope.positive_float("factor", _stretch(config, original))
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    factors = rope.positive_floats("short_factor")
    if len(factors) != dim // 2:
        raise rope.invalid("short_factor", f"{dim // 2} numbers")
    return ListedScaling(factors, rope.positive_float("attention_factor", grown))


def _stretch(config: ConfigReader, original: int) -> float:
    return config.positive("max_position_embeddings", original) / original


def _original(config: ConfigReader, rope: ConfigReader, default: int) -> int:
    name = "original_max_position_embeddings"
    return (config if config.has(name) else rope).positive(name, default)
