# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What families make of config.json: defaults, old spellings, and what they refuse by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from family_cases import CASES
from transformers import AutoConfig

from slipstream.attention.interface import FULL, Mask
from slipstream.layers.rope_scaling import LinearScaling, ListedScaling, YarnScaling
from slipstream.models.config_reader import CheckpointError
from slipstream.models.registry import FAMILIES, describe
from slipstream.models.spec import ArchSpec

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}


def spec_of(architecture: str, **fields: Any) -> ArchSpec:
    return describe({"architectures": [architecture], **SIZES, **fields})[0]


def windows(spec: ArchSpec) -> str:
    """Layer by layer, L for local and G for global."""
    return "".join("G" if layer.attention.scores.mask == FULL else "L" for layer in spec.layers)


def rotated(spec: ArchSpec) -> str:
    return "".join("-" if layer.attention.rope is None else "R" for layer in spec.layers)


NESTED = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
LONGROPE = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, "sliding_window is 8; supported: absent"),
        ("GraniteForCausalLM", {"sliding_window": 8}, "sliding_window is 8; supported: absent"),
        (
            "Olmo2ForCausalLM",
            {"layer_types": ["sliding_attention"] * 8},
            "layer_types is .*; supported: a list of 'full_attention'",
        ),
        ("LlamaForCausalLM", {"rope_parameters": NESTED}, "rope_parameters.full_attention is "),
        (
            "Qwen2ForCausalLM",
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
            r"rope_scaling.mrope_section is \[2, 3, 3\]; supported: absent",
        ),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.type is 'dynamic'; supported: 'default', 'linear', 'llama3', 'yarn' or",
        ),
        (
            "Qwen3ForCausalLM",
            {"rope_scaling": {"type": "yarn", "factor": -1.0}},
            "rope_scaling.factor is -1.0; supported: a finite number above 0",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 7}},
            r"rope_scaling.short_factor is \[.*\]; supported: 8 numbers",
        ),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {**LONGROPE, "short_factor": ["1"]}},
            r"short_factor is \['1'\]; supported: a list of finite numbers above 0",
        ),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; supp"),
        ("Glm4ForCausalLM", {"head_dim": 6}, "partial_rotary_factor is 0.5; supported: a share of"),
        (
            "MistralForCausalLM",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5; supported: 1",
        ),
        (
            "MistralForCausalLM",
            {"sliding_window": 0},
            "sliding_window is 0; supported: a number ab",
        ),
        (
            "MistralForCausalLM",
            {"attention_bias": True},
            "attention_bias is True; supported: False",
        ),
        (
            "Gemma2ForCausalLM",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention is True; supported: False",
        ),
        (
            "Gemma2ForCausalLM",
            {"hidden_activation": "mish"},
            "hidden_activation is 'mish'; supported: 'silu'",
        ),
        (
            "Gemma3ForCausalLM",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0; supported: absent",
        ),
        (
            "Cohere2ForCausalLM",
            {"layer_types": ["full_attention"]},
            "layer_types is .*; supported: one entry for each of 8 layers",
        ),
        (
            "Cohere2ForCausalLM",
            {"layer_types": ["linear_attention"] * 8},
            "supported: a list of 'sliding_attention' and 'full_attention'",
        ),
        ("CohereForCausalLM", {"use_parallel_block": False}, "use_parallel_block is False"),
        (
            "Exaone4ForCausalLM",
            {"sliding_window_pattern": "LXG"},
            "sliding_window_pattern is 'LXG'; supported: a number, or letters L and G",
        ),
        (
            "SmolLM3ForCausalLM",
            {"no_rope_layers": [1, 2]},
            r"no_rope_layers is \[1, 2\]; supported: a list of 8 zeros and ones",
        ),
        (
            "SmolLM3ForCausalLM",
            {"use_sliding_window": True},
            "sliding_window is None; supported: a",
        ),
        (
            "Qwen2ForCausalLM",
            {"layer_types": ["sliding_attention"] * 8},
            "layer_types is .*; supported: a list of 'full_attention'",
        ),
        ("Olmo2ForCausalLM", {"clip_qkv": 8.0}, "clip_qkv is 8.0; supported: absent"),
        ("Starcoder2ForCausalLM", {"norm_type": "rms"}, "norm_type is 'rms'; supported: 'layer_n"),
        (
            "GPTNeoXForCausalLM",
            {"num_key_value_heads": 2},
            "num_key_value_heads is 2; supported: 4",
        ),
        (
            "GPT2LMHeadModel",
            {"n_embd": 63, "n_head": 4, "n_layer": 1},
            "n_embd is 63; supported: a",
        ),
        ("GPT2LMHeadModel", {}, "config.json: n_embd is missing"),
    ],
)
def test_refusals_name_the_field(architecture: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        spec_of(architecture, **fields)


def test_windows_follow_the_old_patterns() -> None:
    assert windows(spec_of("Gemma2ForCausalLM")) == "LGLGLGLG"
    assert windows(spec_of("Gemma3ForCausalLM")) == "LLLLLGLL"
    assert windows(spec_of("Gemma3ForCausalLM", sliding_window_pattern=2)) == "LGLGLGLG"
    assert windows(spec_of("Cohere2ForCausalLM")) == "LLLGLLLG"
    assert windows(spec_of("Exaone4ForCausalLM")) == "LLLGLLLG"
    assert windows(spec_of("Exaone4ForCausalLM", sliding_window_pattern="LLG")) == "LLGLLGLG"
    assert windows(spec_of("Exaone4ForCausalLM", sliding_window=None)) == "GGGGGGGG"
    qwen = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 6}
    assert windows(spec_of("Qwen2ForCausalLM", **qwen)) == "GGGGGGLL"
    assert windows(spec_of("Qwen2ForCausalLM", sliding_window=9)) == "GGGGGGGG"


def test_an_absent_window_is_the_familys_and_null_is_none() -> None:
    absent = spec_of("MistralForCausalLM").layers[0].attention.scores
    assert absent.mask == Mask("sliding", 4096)
    assert windows(spec_of("MistralForCausalLM", sliding_window=None)) == "GGGGGGGG"
    assert spec_of("Gemma2ForCausalLM").logit_soft_cap == 30.0
    assert spec_of("Gemma2ForCausalLM", final_logit_softcapping=None).logit_soft_cap is None


def test_layers_without_positions() -> None:
    assert rotated(spec_of("SmolLM3ForCausalLM")) == "RRR-RRR-"
    assert rotated(spec_of("SmolLM3ForCausalLM", no_rope_layer_interval=3)) == "RR-RR-RR"
    assert rotated(spec_of("Cohere2ForCausalLM")) == "RRR-RRR-"
    assert rotated(spec_of("Exaone4ForCausalLM")) == "RRR-RRR-"
    assert rotated(spec_of("Exaone4ForCausalLM", sliding_window=None)) == "RRRRRRRR"


def test_both_spellings_of_gemma_3s_rotations() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = spec_of(
        "Gemma3ForCausalLM", rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=scaling
    )
    new = spec_of(
        "Gemma3ForCausalLM",
        rope_parameters={
            "full_attention": {**scaling, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert old == new
    local, far = new.layers[0].attention.rope, new.layers[5].attention.rope
    assert local is not None
    assert far is not None
    assert (local.theta, local.scaling) == (1e4, None)
    assert (far.theta, far.scaling) == (1e6, LinearScaling(8.0))
    assert new.max_positions == 4096


def test_yarn_stretches_the_limit_and_longrope_ends_at_its_original_length() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    spec = spec_of("Qwen2ForCausalLM", rope_scaling=yarn)
    rope = spec.layers[0].attention.rope
    assert rope is not None
    assert spec.max_positions == 16384
    assert rope.scaling == YarnScaling(4.0, 4096, pytest.approx(1.1386294))
    spec = spec_of(
        "Phi3ForCausalLM",
        original_max_position_embeddings=1024,
        rope_scaling={**LONGROPE, "type": "longrope"},
    )
    rope = spec.layers[0].attention.rope
    assert rope is not None
    assert spec.max_positions == 1024
    assert rope.scaling == ListedScaling((1.0,) * 8, pytest.approx(1.0954451))


def test_old_names_of_longrope() -> None:
    new = spec_of("Phi3ForCausalLM", rope_scaling={**LONGROPE, "type": "longrope"})
    for name in ("su", "yarn"):
        assert spec_of("Phi3ForCausalLM", rope_scaling={**LONGROPE, "type": name}) == new


MODEL_TYPES = {
    architecture: case.model_type
    for family in FAMILIES
    for architecture in family.architectures
    for case in CASES
    if case.family == family.name
}


@pytest.mark.parametrize("architecture", MODEL_TYPES)
def test_absent_fields_mean_what_transformers_says(architecture: str) -> None:
    """A config.json of sizes alone, against one where transformers wrote every default."""
    gpt2 = {"vocab_size": 100, "n_embd": 64, "n_layer": 8, "n_head": 4}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    given = {name: SIZES[name] for name in (*sizes, "num_attention_heads")}
    given = gpt2 if architecture.startswith("GPT2") else {**given, "num_key_value_heads": 4}
    written = AutoConfig.for_model(MODEL_TYPES[architecture], **given).to_dict()
    full = describe({**written, "architectures": [architecture]})[0]
    bare = describe({**given, "architectures": [architecture]})[0]
    # Published files name their ids; transformers' defaults for them belong to no tokenizer.
    assert replace(bare, end_ids=(), pad_id=-1, dtype=None) == replace(
        full, end_ids=(), pad_id=-1, dtype=None
    )
