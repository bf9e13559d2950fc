# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Llama 4's text model: chunked attention with rope, now and then full attention without."""

from __future__ import annotations

from dataclasses import replace

from slipstream.attention.interface import FULL, Mask
from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.norm import NormSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_spec, rms_norm
from slipstream.models.families.moe import read_experts, shared_weights, with_moe
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec, LayerSpec, QkNormSpec, TemperatureSpec
from slipstream.models.weights import WeightRule, WeightTable, prefixed, stack

_FROM = "model.layers.{layer}.feed_forward."
_TO = "layers.{layer}.mlp."


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config = _text_part(config) if config.has("text_config") else config
    norm = rms_norm(config, 1e-5)
    config = config.with_defaults(
        attention_chunk_size=8192,
        head_dim=128,
        max_position_embeddings=131072,
        num_experts_per_tok=1,
        num_key_value_heads=8,
        num_local_experts=16,
        rope_theta=500000.0,
    )
    spec = read_spec(config, architecture, norm=norm, windows=True)
    dense = MlpSpec(config.positive("intermediate_size_mlp", 16384))
    spec = _with_attention_kinds(
        config, spec.map_layers(lambda _, layer: replace(layer, mlp=dense)), norm
    )
    count, top_k = read_experts(config, "num_local_experts")
    width = config.positive("intermediate_size")
    moe = MoeSpec(
        RouterSpec(count, top_k, "sigmoid", score_chosen=True),
        ExpertsSpec(width, weigh_input=True),
        MlpSpec(width),
    )
    step = config.positive("interleave_moe_layer_step", 1)
    sparse = config.integers("moe_layers")
    if sparse is None:
        sparse = tuple(range(step - 1, spec.num_layers, step))
    return with_moe(spec, moe, lambda index: index in sparse)


def _text_part(config: ConfigReader) -> ConfigReader:
    """The language model of a checkpoint that sees as well."""
    config.has_only("quantization_config")
    dtype = config.get("dtype" if config.has("dtype") else "torch_dtype", str, "float32")
    text = config.child("text_config")
    return text if text.has("dtype") else text.with_values(dtype=dtype)


def _with_attention_kinds(config: ConfigReader, spec: ArchSpec, norm: NormSpec) -> ArchSpec:
    every = config.positive("no_rope_layer_interval", 4)
    rotated = config.integers("no_rope_layers")  # 1 for layers with rope, despite its name
    if not rotated:
        rotated = tuple(int((index + 1) % every != 0) for index in range(spec.num_layers))
    names = ("chunked_attention", "full_attention")
    chunk = config.has("attention_chunk_size")
    kinds = config.strings("layer_types", names)
    kinds = kinds or [names[0] if rope and chunk else names[1] for rope in rotated]
    if len(kinds) != spec.num_layers or len(rotated) < spec.num_layers:
        raise config.invalid("layer_types", f"one entry for each of {spec.num_layers} layers")
    chunked = Mask("chunked", config.positive("attention_chunk_size")) if chunk else FULL
    qk_norm = QkNormSpec(replace(norm, weight=False), after_rope=True)
    normalised = config.get("use_qk_norm", bool, True)
    temperature = _temperature(config)

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        old = layer.attention
        mask = chunked if kinds[index] == names[0] else FULL
        new = replace(old, scores=replace(old.scores, mask=mask), temperature=temperature)
        if old.rope is not None and rotated[index]:
            rope = replace(old.rope, style="interleaved")
            new = replace(new, rope=rope, temperature=None)
            return replace(layer, attention=replace(new, qk_norm=qk_norm if normalised else None))
        return replace(layer, attention=replace(new, rope=None))

    return spec.map_layers(change)


def _temperature(config: ConfigReader) -> TemperatureSpec | None:
    if not config.get("attn_temperature_tuning", bool, True):
        return None
    scale = config.positive_float("attn_scale", 0.1)
    return TemperatureSpec(config.positive("floor_scale", 8192), scale)


def _experts(name: str) -> WeightRule:
    transposed = (_FROM + f"experts.{name}",)
    return WeightRule(transposed, lambda tensors, spec: tensors[0].transpose(1, 2))


WEIGHTS: WeightTable = {
    **llama.WEIGHTS,
    **shared_weights("feed_forward.shared_expert"),
    _TO + "gate_up": stack(_FROM + "gate_proj", _FROM + "up_proj"),
    _TO + "down": _FROM + "down_proj",
    _TO + "router": _FROM + "router",
    _TO + "experts.gate_up": _experts("gate_up_proj"),
    _TO + "experts.down": _experts("down_proj"),
}


FAMILY = Family(
    "Llama 4 (text)",
    ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
    arch_spec,
    prefixed("language_model.", WEIGHTS),
    ignored_parts=("vision_model.", "multi_modal_projector."),
    prefix="language_model.",  # not there where nothing sees
)
