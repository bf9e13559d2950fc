# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of weight names: stacking, transforms, experts, alternatives, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_cases import CASES
from safetensors.torch import load_file, save_file

from slipstream.models.checkpoint import Checkpoint
from slipstream.models.config_reader import CheckpointError
from slipstream.models.decoder import Decoder
from slipstream.models.loader import load_decoder
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightRule, WeightTable, plan_copies, stack

Tensors = dict[str, torch.Tensor]


def fill(
    table: WeightTable, parameters: Tensors, tensors: Tensors, num_layers: int = 1
) -> list[str]:
    """Fills the parameters; the tensors that were read, in order."""
    spec: ArchSpec = None  # type: ignore[assignment]  # these transforms do not look at it
    read: list[str] = []
    for copy in plan_copies(table, parameters, num_layers, tensors.__contains__):
        copy.run(tuple(tensors[name] for name in copy.sources), spec)
        read += copy.sources
    return read


def test_sources_are_stacked_layer_by_layer() -> None:
    tensors = {
        f"h.{i}.{n}.weight": torch.full((2, 3), 10.0 * i + ord(n)) for i in (0, 1) for n in "qk"
    }
    parameters = {f"layers.{i}.qk.weight": torch.empty(4, 3) for i in (0, 1)}
    table = {"layers.{layer}.qk": stack("h.{layer}.q", "h.{layer}.k")}
    assert fill(table, parameters, tensors, 2) == list(tensors)
    assert parameters["layers.1.qk.weight"][:, 0].tolist() == [123.0, 123.0, 117.0, 117.0]


def test_biases_follow_where_there_are_some_and_absent_targets_are_skipped() -> None:
    table = {"a": "x", "b": "y", "sinks": "attn.sinks"}
    tensors = {"x.weight": torch.ones(1, 1), "x.bias": torch.ones(1), "attn.sinks": torch.ones(2)}
    parameters = {"a.weight": torch.zeros(1, 1), "a.bias": torch.zeros(1), "sinks": torch.zeros(2)}
    assert fill(table, parameters, tensors) == ["x.weight", "x.bias", "attn.sinks"]
    assert all(bool(parameter.all()) for parameter in parameters.values())


def test_experts_fill_their_slices() -> None:
    tensors = {
        f"e.{e}.{n}.weight": torch.full((1, 2), e + 0.1 * ord(n)) for e in range(3) for n in "gu"
    }
    parameters = {"mlp.gate_up.weight": torch.empty(3, 2, 2)}
    table = {"mlp.gate_up": stack("e.{expert}.g", "e.{expert}.u")}
    assert fill(table, parameters, tensors) == list(tensors)
    expected = [[e + 0.1 * ord(n) for n in "gu"] for e in range(3)]
    torch.testing.assert_close(parameters["mlp.gate_up.weight"][..., 0], torch.tensor(expected))


def test_a_transform_may_join_tensors_of_different_shapes() -> None:
    def scaled(parts: tuple[torch.Tensor, ...], spec: ArchSpec) -> torch.Tensor:
        return parts[0].float() * parts[1][:, None]

    packed = WeightRule(("blocks", "scales"), scaled, otherwise=stack("whole"))
    tensors = {"blocks": torch.ones(2, 3, dtype=torch.uint8), "scales": torch.tensor([2.0, 4.0])}
    parameters = {"matrix": torch.empty(2, 3)}
    assert fill({"matrix": packed}, parameters, tensors) == ["blocks", "scales"]
    assert parameters["matrix"].tolist() == [[2.0] * 3, [4.0] * 3]
    assert fill({"matrix": packed}, parameters, {"whole": torch.ones(2, 3)}) == ["whole"]
    assert [c.sources for c in plan_copies({"matrix": packed}, parameters, 1, lambda _: False)] == [
        ("whole",)
    ]


def test_a_parameter_without_a_rule_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"the family's table lacks \['b.weight'\]"):
        fill({"a": "x"}, {"b.weight": torch.empty(1)}, {})


@pytest.mark.parametrize("shape", [(5, 3), (4, 2), (4,)])
def test_misfits_name_tensors_and_shapes(shape: tuple[int, ...]) -> None:
    tensors = {"x.weight": torch.ones(shape)}
    with pytest.raises(CheckpointError, match=r"x.weight \(.*\) for a.weight, which is \(4, 3\)"):
        fill({"a": "x"}, {"a.weight": torch.empty(4, 3)}, tensors)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, Callable[[Tensors], Tensors]], Decoder]:
    """Loads a case's checkpoint after a change of its tensors."""

    def load(model_type: str, edit: Callable[[Tensors], Tensors]) -> Decoder:
        case = next(case for case in CASES if case.model_type == model_type)
        case.make_model().save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        save_file({name: t.contiguous() for name, t in edit(load_file(file)).items()}, file)
        return load_decoder(Checkpoint(tmp_path), torch.float32, torch.device("cpu"))

    return load


def same_weights(first: Decoder, second: Decoder) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_gpt2_checkpoints_without_the_prefix(edited) -> None:
    def stripped(tensors: Tensors) -> Tensors:
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        assert bare.keys() != tensors.keys()
        return {**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}

    assert same_weights(edited("gpt2", stripped), edited("gpt2", lambda tensors: tensors))


def test_names_in_messages_are_the_checkpoints(edited) -> None:
    def stripped(tensors: Tensors) -> Tensors:
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        del bare["h.2.ln_1.bias"]
        return bare

    with pytest.raises(CheckpointError, match="checkpoint has missing tensors: h.2.ln_1.bias$"):
        edited("gpt2", stripped)


@pytest.mark.parametrize("name", ["embed_out.weight", "lm_head.weight"])
def test_both_names_of_gpt_neoxs_head(edited, name: str) -> None:
    def renamed(tensors: Tensors) -> Tensors:
        (head,) = [name for name in tensors if name in ("embed_out.weight", "lm_head.weight")]
        return {**{n: t for n, t in tensors.items() if n != head}, name: tensors[head] * 2}

    plain, doubled = edited("gpt_neox", lambda tensors: tensors), edited("gpt_neox", renamed)
    assert torch.equal(doubled.lm_head.weight, plain.lm_head.weight * 2)


def test_a_transformed_tensor_that_does_not_fit_is_named(edited) -> None:
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    with pytest.raises(CheckpointError, match=rf"{name} \(190, 64\) for layers.1.attention.qkv.we"):
        edited("gpt_neox", lambda tensors: {**tensors, name: tensors[name][:190]})
