# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations of most families have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slipstream.attention.interface import FULL, Mask, ScoreSpec
from slipstream.layers.mlp import Activation, MlpSpec
from slipstream.layers.norm import NormSpec
from slipstream.layers.rotary import RopeStyle
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families.rope import max_positions, read_rope
from slipstream.models.spec import ArchSpec, AttentionSpec, LayerSpec

# Names of transformers; its variants of the tanh approximation differ only in rounding.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


_MAX_LAYERS = 4096  # a layer costs time and memory even before its weights do


def read_spec(
    config: ConfigReader,
    architecture: str,
    *,
    norm: NormSpec,
    windows: bool = False,
    rope: bool = True,
    partial_rope: bool = False,
    rope_style: RopeStyle = "halves",
) -> ArchSpec:
    """A pre-norm decoder with gated MLPs and full attention, from the fields that families share.

    ``windows``: the family's file reads sliding windows; ``rope`` false: it reads rotations;
    ``partial_rope``: ``partial_rotary_factor`` may be below 1. Raises CheckpointError.
    """
    config.has_only("quantization_config")
    if not windows:
        config.only("sliding_window")
        config.strings("layer_types", ("full_attention",))
    hidden_size = config.positive("hidden_size")
    num_heads, num_kv_heads, head_dim = _read_heads(config, hidden_size)
    bias = config.get("attention_bias", bool, False)
    attention = AttentionSpec(
        scores=ScoreSpec(head_dim**-0.5),
        rope=read_rope(config, head_dim, partial=partial_rope, style=rope_style) if rope else None,
        qkv_bias=bias,
        output_bias=bias,
    )
    mlp = MlpSpec(
        config.positive("intermediate_size"),
        activation=read_activation(config),
        bias=config.get("mlp_bias", bool, False),
    )
    return ArchSpec(
        architecture=architecture,
        vocab_size=config.positive("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions(config, attention.rope),
        layers=(LayerSpec(attention, mlp),)
        * config.positive("num_hidden_layers", limit=_MAX_LAYERS),
        norm=norm,
        tie_embeddings=config.get("tie_word_embeddings", bool, False),
        dtype=config.get("dtype" if config.has("dtype") else "torch_dtype", str, "") or None,
        end_ids=config.token_ids("eos_token_id"),
        pad_id=next(iter(config.token_ids("pad_token_id")), -1),
    )


def rms_norm(config: ConfigReader, default: float = 1e-6) -> NormSpec:
    return NormSpec(config.positive_float("rms_norm_eps", default))


def read_activation(config: ConfigReader) -> Activation:
    name = config.get("hidden_act", str, "silu")
    if name not in _ACTIVATIONS:
        raise config.lacking("hidden_act", ", ".join(map(repr, _ACTIVATIONS)))
    return _ACTIVATIONS[name]


def with_window(config: ConfigReader, spec: ArchSpec) -> ArchSpec:
    """``sliding_window`` for every layer, if there is one."""
    if not config.has("sliding_window"):
        return spec
    return with_masks(spec, [Mask("sliding", config.positive("sliding_window"))] * spec.num_layers)


def with_masks(spec: ArchSpec, masks: list[Mask]) -> ArchSpec:
    """The same decoder with one mask a layer."""
    return spec.map_layers(lambda index, layer: _with_scores(layer, mask=masks[index]))


def with_scores(spec: ArchSpec, **changes: Any) -> ArchSpec:
    """The same decoder with fields of every layer's ScoreSpec changed."""
    return spec.map_layers(lambda _, layer: _with_scores(layer, **changes))


def with_mlp(spec: ArchSpec, **changes: Any) -> ArchSpec:
    """The same decoder with fields of every layer's MlpSpec changed."""
    return spec.map_layers(lambda _, layer: replace(layer, mlp=replace(layer.mlp, **changes)))


def without_rope(spec: ArchSpec, is_bare: Callable[[int, LayerSpec], bool]) -> ArchSpec:
    """The same decoder with some layers that know no positions."""
    return spec.map_layers(
        lambda index, layer: (
            replace(layer, attention=replace(layer.attention, rope=None))
            if is_bare(index, layer)
            else layer
        )
    )


def is_full(index: int, layer: LayerSpec) -> bool:
    return layer.attention.scores.mask == FULL


def read_masks(
    config: ConfigReader, num_layers: int, is_sliding: Callable[[int], bool]
) -> list[Mask]:
    """One mask a layer: from ``layer_types``, or ``is_sliding`` where the checkpoint has none."""
    sliding, full = "sliding_attention", "full_attention"
    kinds = config.strings("layer_types", (sliding, full))
    if kinds is None:
        kinds = [sliding if is_sliding(index) else full for index in range(num_layers)]
    if len(kinds) != num_layers:
        raise config.invalid("layer_types", f"one entry for each of {num_layers} layers")
    if sliding not in kinds:
        return [FULL] * num_layers
    window = Mask("sliding", config.positive("sliding_window"))
    return [window if kind == sliding else FULL for kind in kinds]


def _with_scores(layer: LayerSpec, **changes: Any) -> LayerSpec:
    scores = replace(layer.attention.scores, **changes)
    return replace(layer, attention=replace(layer.attention, scores=scores))


def _read_heads(config: ConfigReader, hidden_size: int) -> tuple[int, int, int]:
    num_heads = config.positive("num_attention_heads")
    num_kv_heads = config.positive("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.invalid("num_key_value_heads", f"a divisor of {num_heads} attention heads")
    if not config.has("head_dim") and hidden_size % num_heads:
        raise config.invalid("hidden_size", f"a multiple of {num_heads} attention heads")
    head_dim = config.positive("head_dim", max(hidden_size // num_heads, 1))
    if head_dim % 2:
        raise config.invalid("head_dim", "an even number")
    return num_heads, num_kv_heads, head_dim
