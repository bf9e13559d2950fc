# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose forward serves a checkpoint: the family's, and transformers' where the family lacks what
the configuration asks for and transformers has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import WINDOW, Case
from family_serving import PROMPT, TOLERANCE, Served, context_logits, error_of, random_tokens
from safetensors.torch import load_file, save_file

from slipstream.models.config_reader import CheckpointError, LackingError
from slipstream.models.decoder import Decoder
from slipstream.models.fallback.decoder import FallbackDecoder
from slipstream.models.selection import ModelImpl, UnmeasuredError, load_served, served_spec

CPU = torch.device("cpu")
MISH = "config.json: hidden_act is 'mish'; supported: 'silu'"
LACKING = {
    "rope_type is 'dynamic'": Case(
        "Llama", "llama", "", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    ),
    "hidden_act is 'mish'": Case("Llama", "llama", "mish", {"hidden_act": "mish"}),
    "hidden_act is 'gelu'": Case("Mixtral", "mixtral", "gelu", {"hidden_act": "gelu"}),
    "use_sliding_window is True": Case(
        "Qwen2-MoE",
        "qwen2_moe",
        "windows",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "num_experts": 6,
            "moe_intermediate_size": 24,
        },
    ),
    "attn_logit_softcapping is 20.0": Case(
        "Gemma 3",
        "gemma3_text",
        "soft cap",
        {"attn_logit_softcapping": 20.0, "head_dim": 16, "sliding_window": WINDOW},
    ),
}


@pytest.fixture
def saved(tmp_path: Path):
    """Makes the checkpoint of a small Llama with fields of its config.json changed."""

    def make(**fields: Any) -> Path:
        Case("Llama", "llama", "").make_model().save_pretrained(tmp_path)
        edit(tmp_path, **fields)
        return tmp_path

    return make


def edit(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in values.items() if value != ...}))


def told(path: Path, impl: ModelImpl = "auto") -> tuple[type, list[str]]:
    lines: list[str] = []
    model = load_served(path, "auto", CPU, impl=impl, progress=lambda _, what: lines.append(what))
    return type(model), list(dict.fromkeys(lines))


@pytest.mark.parametrize("lacks", LACKING)
def test_transformers_serves_what_the_family_lacks(lacks: str, tmp_path: Path) -> None:
    served = Served.of(LACKING[lacks], tmp_path)
    assert isinstance(served.runner.decoder, FallbackDecoder)
    prompt = random_tokens(PROMPT, seed=3)
    logits = context_logits(served.driver(), prompt, 11)
    assert error_of(logits, served.logits(prompt)) < TOLERANCE
    values = json.loads((tmp_path / "config.json").read_text())
    if "dynamic" in lacks:
        with pytest.raises(UnmeasuredError, match="cannot be measured without weights"):
            served_spec(values)
    else:
        assert served_spec(values).scores == served.runner.decoder.spec.scores
    for refuse in (
        lambda: served_spec(values, "native"),
        lambda: load_served(tmp_path, "auto", CPU, impl="native"),
    ):
        with pytest.raises(LackingError, match=lacks):
            refuse()


def test_one_line_says_why(saved) -> None:
    path = saved()
    assert told(path) == (Decoder, ["loading weights"])
    edit(path, hidden_act="mish")
    kind, lines = told(path)
    assert kind is FallbackDecoder
    assert [line for line in lines if "hidden_act" in line] == lines[:1]
    assert lines[0].startswith(f"trying transformers' own forward, for {MISH}")
    assert not any("hidden_act" in line for line in told(path, "transformers")[1])


def test_when_both_refuse_the_error_names_both_reasons(saved) -> None:
    path = saved(quantization_config={"quant_method": "fp8"})
    values = json.loads((path / "config.json").read_text())
    for refuse in (lambda: served_spec(values), lambda: load_served(path, "auto", CPU)):
        with pytest.raises(CheckpointError) as caught:
            refuse()
        assert str(caught.value) == (
            "config.json: quantization_config is {'quant_method': 'fp8'}; supported: absent; and "
            "transformers' own forward does not serve it: "
            "config.json: quantization_config is there; supported: absent"
        )


def test_without_a_model_type_the_family_has_the_last_word(saved) -> None:
    path = saved(hidden_act="mish", model_type=...)
    with pytest.raises(LackingError, match=MISH):
        load_served(path, "auto", CPU)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # What transformers would ignore is refused, not passed on.
        ({"sliding_window": 8}, "sliding_window is 8; supported: absent"),
        ({"hidden_size": -64}, "hidden_size is -64; supported: a number above 0"),
        ({"hidden_size": "64"}, "hidden_size is '64'; supported: a int"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; supported: a divisor of 4"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": -1.0}},
            "rope_parameters.factor is -1.0; supported: a finite number above 0",
        ),
    ],
)
def test_nonsense_goes_no_further(saved, monkeypatch, fields, message) -> None:
    path = saved(**fields)
    monkeypatch.setattr("slipstream.models.selection.FallbackCheckpoint", never)
    with pytest.raises(CheckpointError, match=f"^config.json: {message}"):
        load_served(path, "auto", CPU)


def never(*_: Any) -> None:
    raise AssertionError("transformers must not be asked")


def cut_off(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"model\.safetensors: cut off"),
        (without_a_tensor, "missing tensors: model.norm.weight"),
        (lambda path: (path / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda path: (path / "config.json").write_text("{"), "config.json: Expecting"),
        (lambda path: (path / "generation_config.json").write_text("{"), "generation_config.json"),
        (lambda path: edit(path, intermediate_size=96), "mlp.gate_proj.weight"),
    ],
)
def test_damage_goes_no_further(saved, monkeypatch, damage, message) -> None:
    path = saved()
    damage(path)
    monkeypatch.setattr("slipstream.models.selection.FallbackCheckpoint", never)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_served(path, "auto", CPU)
    assert "transformers" not in str(caught.value)
