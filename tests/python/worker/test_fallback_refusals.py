# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Models that the paged cache cannot serve are refused before weights are read, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fallback_cases import BOTH, FOREIGN, GPTJ_IS_SERVED, GPTJ_SIZES
from family_cases import SIZES
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig
from worker_testing import load_runner

from slipstream.attention.interface import FULL, Mask
from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback.bridge import PAGED, AttentionCall, Bridge, WantedMask
from slipstream.models.fallback.checkpoint import FallbackCheckpoint
from slipstream.models.fallback.decoder import FallbackDecoder
from slipstream.models.fallback.probe import read_call
from slipstream.models.fallback.self_test import self_test
from slipstream.models.selection import UnmeasuredError, load_served, served_spec

CPU = torch.device("cpu")


def config_of(model_type: str, **fields: Any) -> dict[str, Any]:
    """A whole config.json."""
    config = AutoConfig.for_model(model_type, **fields)
    return json.loads(config.to_json_string(use_diff=False))


_OF_ITS_OWN = (
    "chooses among attentions of its own, not by transformers' attention interface; it cannot "
    "attend to a paged KV cache"
)
_OLD_GPTJ = ("gptj", GPTJ_SIZES, f"gptj: {_OF_ITS_OWN}")


def sizes(**fields: Any) -> dict[str, Any]:
    return {**SIZES, **fields}


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        (
            "bloom",
            {"vocab_size": 101, "hidden_size": 64, "n_layer": 2, "n_head": 4},
            "BloomForCausalLM: computes with its attention mask, as ALiBi and sparse attention do; "
            "only masks that are causal, a window or chunks are served",
        ),
        (
            "falcon",
            {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "alibi": True},
            f"falcon: {_OF_ITS_OWN}",
        ),
        *(() if GPTJ_IS_SERVED else (_OLD_GPTJ,)),
        (
            "openai-gpt",
            {"vocab_size": 101, "n_embd": 64, "n_layer": 2, "n_head": 4},
            "OpenAIGPTLMHeadModel: none of its 2 layers call transformers' attention interface; "
            "the others cannot attend to a paged KV cache",
        ),
        (
            "mamba",
            {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2},
            "mamba: has layers with a state (state-space or linear attention); only attention "
            "over a KV cache is served",
        ),
        (
            "lfm2",
            sizes(layer_types=["conv", "full_attention"] * 2),
            "lfm2: layer_types has conv; only attention over a KV cache is served",
        ),
        ("bart", {}, "bart: has an encoder; only decoders are served"),
        (
            "bert",
            {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2},
            "BertLMHeadModel: layer 0 attends to later tokens (its attention is not causal)",
        ),
        (
            "llama4_text",
            sizes(head_dim=16, num_local_experts=4, attn_temperature_tuning=True),
            "Llama4ForCausalLM: forward in modeling_llama4.py counts the tokens of a row, where a "
            "row holds tokens of several sequences",
        ),
    ],
)
def test_models_are_refused_from_their_configuration(
    model_type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        served_spec(config_of(model_type, **fields), "transformers")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "novel"},
            "config.json: model_type is 'novel', which this version of transformers does not know",
        ),
        (
            {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "modeling.Novel"}},
            "config.json: model_type is 'novel', whose Python code comes with the checkpoint; it "
            "runs with trust_remote_code",
        ),
        (
            {**config_of("bert"), "architectures": ["BertForMaskedLM"]},
            "config.json: architectures: BertForMaskedLM is not the causal language model of "
            "bert, which is BertLMHeadModel",
        ),
        (
            config_of("clip"),
            "config.json: model_type clip has no causal language model in transformers",
        ),
        (
            {**config_of("nemotron"), "quantization_config": {"bits": 4}},
            "config.json: quantization_config is there; supported: absent",
        ),
    ],
)
def test_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        served_spec(values, "transformers")
    assert str(caught.value) == message


def test_trusted_code_runs_only_to_load(tmp_path: Path) -> None:
    """Importing it would fail: the file says what it wants to happen."""
    values = {"model_type": "novel", "auto_map": {"AutoConfig": "novel.NovelConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "novel.py").write_text("raise SystemError('this code has run')\n")
    with pytest.raises(UnmeasuredError, match="known only to the code that comes with it"):
        served_spec(values, trust_remote_code=True)
    with pytest.raises(CheckpointError, match="it runs with trust_remote_code"):
        load_served(tmp_path, "auto", CPU)
    with pytest.raises(SystemError, match="this code has run"):
        load_served(tmp_path, "auto", CPU, trust_remote_code=True)


def test_a_native_model_can_be_forced_and_refused() -> None:
    values = {**config_of("arcee", **SIZES), "architectures": ["ArceeForCausalLM"]}
    with pytest.raises(CheckpointError, match="ArceeForCausalLM is not supported; supported: "):
        served_spec(values, "native")
    assert served_spec(values).architecture == "ArceeForCausalLM"


def test_tensors_that_are_missing_or_not_expected_are_named(tmp_path: Path) -> None:
    FOREIGN[0].make_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.gate.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match="^checkpoint has missing tensors: model.layers.1.mlp.up_proj.weight; "
        "unexpected tensors: model.layers.0.mlp.gate.weight$",
    ):
        load_runner(tmp_path, model_impl="transformers")


class _Smearing(nn.Module):
    """Adds to every token the mean of those before it in the row, as a state would."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        counts = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype)[None, :, None]
        return hidden.cumsum(1) / counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [FOREIGN[0], BOTH[1]], ids=lambda case: case.name)
def test_a_forward_that_mixes_tokens_of_a_row_is_refused(case, dtype, tmp_path: Path) -> None:
    case.make_model().save_pretrained(tmp_path)
    decoder = load_served(tmp_path, dtype, CPU, impl="transformers")
    assert isinstance(decoder, FallbackDecoder)
    self_test(decoder)
    decoder.model.model.layers[1].mlp = _Smearing()
    with pytest.raises(
        CheckpointError,
        match=f"^{type(decoder.model).__name__}: tokens of several sequences in one row give "
        r"other logits than each sequence by itself \(by \d",
    ):
        self_test(decoder)


def call(mask: Any = None, heads: int = 4, **options: Any) -> AttentionCall:
    query, key = torch.zeros(1, heads, 5, 8), torch.zeros(1, 2, 5, 8)
    return AttentionCall(nn.Module(), query, key, torch.zeros(1, 2, 5, 6), mask, options)


def window(size: int) -> WantedMask:
    return WantedMask(lambda _, __, q, k: (k <= q) & (k > q - size), size)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (call(dropout=0.1), "wants dropout of 0.1 while serving"),
        (call(position_bias=1.5), "passes position_bias to attention, which is not honoured"),
        (call(is_causal=False), "attends to later tokens (its attention is not causal)"),
        (call(heads=3), "has 3 query heads for 2 KV heads"),
        (call(torch.zeros(1, 1, 5, 5)), "makes its attention mask itself"),
        (
            call(WantedMask(lambda _, __, q, k: (k <= q) & (k != 1), None)),
            "has an attention mask that is neither causal nor a window nor chunks",
        ),
        (
            call(WantedMask(lambda _, __, q, k: torch.ones(5)[k] > q, None)),
            "has an attention mask of its own batch (index 5 is out of bounds for dimension "
            "0 with size 5)",
        ),
        (
            call(window(7), sliding_window=8),
            "wants a window of 8 and a mask that is Mask(kind='sliding', size=7)",
        ),
    ],
)
def test_what_attention_does_not_honour_is_named(wanted: AttentionCall, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_call(wanted, CPU)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [1, 2, 3, 16, 4096])
def test_masks_are_recognised(size: int) -> None:
    def chunks(_: int, __: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k // size == q // size)

    def off_by_one(_: int, __: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k >= q - size)

    sliding = read_call(call(window(size), scaling=0.25, softcap=30.0), CPU).scores
    assert (sliding.mask, sliding.scale, sliding.soft_cap) == (Mask("sliding", size), 0.25, 30.0)
    assert read_call(call(), CPU).scores.mask == FULL
    if size > 1:  # a window of one token is a chunk of one
        assert read_call(call(WantedMask(chunks, size)), CPU).scores.mask == Mask("chunked", size)
    with pytest.raises(CheckpointError, match="neither causal nor a window nor chunks"):
        read_call(call(WantedMask(off_by_one, size)), CPU)


def test_models_of_one_process_share_no_attention(tmp_path: Path) -> None:
    FOREIGN[0].make_model().save_pretrained(tmp_path)
    first, second = (load_served(tmp_path, "auto", CPU, impl="transformers") for _ in range(2))
    assert isinstance(first, FallbackDecoder)
    assert isinstance(second, FallbackDecoder)
    assert first.bridge is not second.bridge
    assert first.model.config is not second.model.config
    with first.bridge.using("eager"):
        assert second.model.config._attn_implementation == PAGED
    assert first.model.config._attn_implementation == PAGED
    assert isinstance(first.bridge, Bridge)


def test_sizes_are_those_of_the_largest_layer() -> None:
    """Values of 12 beside keys of 24 take 24; a plan and the loaded model say the same."""
    [case] = [case for case in FOREIGN if case.model_type == "minicpm3"]
    spec = FallbackCheckpoint(config_of("minicpm3", **case.sizes)).spec
    assert spec is not None
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 4, 4, 24)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
            1024,
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 128,
            },
            128,
        ),
    ],
)
def test_the_longest_sequence_follows_from_the_rotation(rope: dict[str, Any], limit: int) -> None:
    """Rotations that turn with the longest sequence of a batch never see one where they do."""
    values = config_of("arcee", **sizes(rope_parameters={"rope_theta": 1e4, **rope}))
    model = FallbackCheckpoint(values).load(Path("nowhere"), torch.float32, CPU, dummy_seed=0)
    assert model.spec.max_positions == limit


def test_dummy_weights_repeat() -> None:
    values = config_of("arcee", **SIZES)
    first, again, other = (
        FallbackCheckpoint(values).load(Path("nowhere"), torch.float32, CPU, dummy_seed=seed)
        for seed in (3, 3, 4)
    )
    weights = [model.model.lm_head.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
