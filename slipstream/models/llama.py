# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The Llama family: Llama 1 to 3.3 and checkpoints in its format."""

from __future__ import annotations

from slipstream.models.config_reader import ConfigReader
from slipstream.models.spec import ArchSpec, RopeSpec, WeightRule

ARCHITECTURES = ("LlamaForCausalLM",)

_LAYER = "model.layers.{layer}."

_WEIGHTS = (
    ("model.embed_tokens.weight", "embedding.weight"),
    (_LAYER + "input_layernorm.weight", "layers.{layer}.attention_norm.weight"),
    (_LAYER + "self_attn.q_proj.weight", "layers.{layer}.qkv.weight"),
    (_LAYER + "self_attn.k_proj.weight", "layers.{layer}.qkv.weight"),
    (_LAYER + "self_attn.v_proj.weight", "layers.{layer}.qkv.weight"),
    (_LAYER + "self_attn.o_proj.weight", "layers.{layer}.output.weight"),
    (_LAYER + "post_attention_layernorm.weight", "layers.{layer}.mlp_norm.weight"),
    (_LAYER + "mlp.gate_proj.weight", "layers.{layer}.mlp.gate_up.weight"),
    (_LAYER + "mlp.up_proj.weight", "layers.{layer}.mlp.gate_up.weight"),
    (_LAYER + "mlp.down_proj.weight", "layers.{layer}.mlp.down.weight"),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "lm_head.weight"),
)

# Buffers that old exports saved; they follow from the configuration.
IGNORED_TENSORS = (".rotary_emb.inv_freq",)


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    """Maps config.json, as transformers 4 or 5 writes it, to an ArchSpec.

    Raises CheckpointError naming the field that is missing, of the wrong type or not supported.
    """
    config.only("hidden_act", "silu")
    config.only("quantization_config")
    config.only("sliding_window")
    hidden_size = config.positive("hidden_size")
    num_heads = config.positive("num_attention_heads")
    num_kv_heads = config.positive("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.invalid("num_key_value_heads", f"a divisor of {num_heads} attention heads")
    if not config.has("head_dim") and hidden_size % num_heads:
        raise config.invalid("hidden_size", f"a multiple of {num_heads} attention heads")
    head_dim = config.positive("head_dim", max(hidden_size // num_heads, 1))
    if head_dim % 2:
        raise config.invalid("head_dim", "an even number")
    attention_bias = config.get("attention_bias", bool, False)
    max_positions = config.positive("max_position_embeddings", 2048)
    rope = _rope(config, max_positions)
    return ArchSpec(
        architecture=architecture,
        vocab_size=config.positive("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive("intermediate_size"),
        num_layers=config.positive("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=config.positive_float("rms_norm_eps", 1e-6),
        rope=rope,
        max_positions=int(max_positions * rope.factor) if rope.kind == "linear" else max_positions,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.get("mlp_bias", bool, False),
        tie_embeddings=config.get("tie_word_embeddings", bool, False),
        dtype=config.get("dtype" if config.has("dtype") else "torch_dtype", str, "") or None,
        end_ids=config.token_ids("eos_token_id"),
        pad_id=next(iter(config.token_ids("pad_token_id")), -1),
    )


def weight_rules(spec: ArchSpec) -> list[WeightRule]:
    """The checkpoint's tensors and where they go, biases and tied embeddings considered."""
    biased = {"qkv": spec.qkv_bias, "output": spec.output_bias}
    rules: list[WeightRule] = []
    for source, target in _WEIGHTS:
        if target == "lm_head.weight" and spec.tie_embeddings:
            continue
        rules.append(WeightRule(source, target))
        parts = target.split(".")
        if biased.get(parts[-2], spec.mlp_bias and "mlp" in parts):
            rules.append(WeightRule(_as_bias(source), _as_bias(target)))
    return rules


def _as_bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _rope(config: ConfigReader, max_positions: int) -> RopeSpec:
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    modern = config.has("rope_parameters")
    rope = config.child("rope_parameters" if modern else "rope_scaling")
    theta = (rope if rope.has("rope_theta") else config).positive_float("rope_theta", 10000.0)
    rope.only("partial_rotary_factor", 1, 1.0)
    config.only("partial_rotary_factor", 1, 1.0)
    name = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.get(name, str, "default")
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", rope.positive_float("factor"))
    if kind != "llama3":
        raise rope.invalid(name, "'default', 'linear' or 'llama3'")
    low = rope.positive_float("low_freq_factor")
    high = rope.positive_float("high_freq_factor")
    if high <= low:
        raise rope.invalid("high_freq_factor", f"a number above low_freq_factor ({low})")
    original = rope.positive("original_max_position_embeddings", max_positions)
    return RopeSpec(theta, "llama3", rope.positive_float("factor"), low, high, original)
