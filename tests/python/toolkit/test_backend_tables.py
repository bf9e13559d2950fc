# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables that the generator writes from against those that the C++ backend reads by."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from slipstream.config import Role, SlipstreamConfig, role_parameters
from slipstream.repository.drop_in import OTHER_KEYS, PLACEHOLDERS
from slipstream.repository.tensors import BLS_INTERFACE, DTYPE_CHOICES, INTERFACES
from slipstream.repository.wiring import REFUSED_BY_TOKENIZE, STEPS

from .conftest import ROOT

ROLES: tuple[Role, ...] = ("llm", "tokenize", "detokenize")  # with tables of their own


def source(name: str) -> str:
    text = (ROOT / "backend" / "triton" / name).read_text()
    return re.sub(r"//[^\n]*", "", text)


def function(text: str, signature: str) -> str:
    """The body of a function that starts in the first column."""
    start = text.index(signature)
    return text[start : text.index("\n}\n", start)]


def row_keys(body: str) -> set[str]:
    keys = set(re.findall(r'\{"(\w+)",\s*"\w*",\s*[^\s"]', body))
    for group in re.findall(r"for \(const char\* key : \{([^}]*)\}\)", body):
        keys |= set(re.findall(r'"(\w+)"', group))
    return keys


def backend_keys(role: Role) -> set[str]:
    text = source("parameters.cc" if role == "llm" else "tokenizer_parameters.cc")
    if role == "llm":
        bodies = ["OwnRows() {", "TensorRtLlmRows() {"]
    else:
        name = role.capitalize()
        bodies = ["TokenizerRows() {", f"StatusOr<{name}Parameters> {name}Parameters::FromMap("]
        if role != "detokenize":
            bodies.append("TokenizeRows() {")
    return set().union(*(row_keys(function(text, body)) for body in bodies))


@pytest.mark.parametrize("role", [*ROLES, "pipeline"])
def test_parameters_agree(role: Role) -> None:
    ours = {
        *role_parameters(SlipstreamConfig(), role),
        *PLACEHOLDERS[role],
        *OTHER_KEYS[role],
    }
    assert backend_keys(role) == ours


def test_own_parameters_of_the_backend_are_options() -> None:
    own = row_keys(function(source("parameters.cc"), "OwnRows() {"))
    assert own == set(role_parameters(SlipstreamConfig(), "llm"))


TYPES = {
    "kBool": "BOOL",
    "kUint8": "UINT8",
    "kInt32": "INT32",
    "kInt64": "INT64",
    "kUint64": "UINT64",
    "kFp16": "FP16",
    "kFp32": "FP32",
    "kString": "STRING",
    "kAny": "",
}
ROW = re.compile(r'(\w+)\("(\w+)",\s*(k\w+)(?:,\s*"\[([-\d,]*)\]")?')


def backend_rows(table: str) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    """name -> (type or "" for any, dims, optional)"""
    body = function(source("tensor_table.cc") + "\n}\n", f"{table}() {{")
    rows = {}
    for kind, name, dtype, dims in ROW.findall(body):
        shape = tuple(int(d) for d in dims.split(",")) if dims else (1,)
        rows[name] = (TYPES[dtype], shape, kind != "Required")
    return rows


# Understood by the backend for hand-written configurations; generated ones do not declare them.
UNDECLARED = {
    "START",
    "END",
    "CORRID",
    "multimodal_embedding",
    "multimodal_hashes",
    "multimodal_positions",
    "multimodal_lengths",
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["Inputs", "Outputs"])
def test_tensors_agree(role: Role, kind: str) -> None:
    rows = backend_rows(role.capitalize() + kind)
    interface = INTERFACES[role]
    declared = interface.inputs if kind == "Inputs" else interface.outputs
    assert {t.name for t in declared} == set(rows) - UNDECLARED
    for tensor in declared:
        dtype, dims, optional = rows[tensor.name]
        assert tensor.dims == dims, tensor.name
        if tensor.dtype not in DTYPE_CHOICES and dtype:
            assert tensor.dtype == dtype, tensor.name
        if kind == "Inputs":
            assert tensor.optional == optional, tensor.name


def test_outputs_are_declared_in_the_order_of_responses() -> None:
    assert [t.name for t in INTERFACES["llm"].outputs][:2] == ["output_ids", "sequence_length"]


WIRE = re.compile(r'\{"(\w+)",\s*(kTokenize|kLlm|kPipeline),\s*"(\w+)"\}')
STEP = {"kTokenize": "tokenize", "kLlm": "llm", "kPipeline": "pipeline"}


def backend_wires() -> list[tuple[str, str, str]]:
    """(client's name, role of the step or "pipeline" for none, the step's name), in order"""
    body = function(source("pipeline_wiring.cc"), "const std::vector<Wire>& PipelineWires() {")
    return [(name, STEP[step], tensor) for name, step, tensor in WIRE.findall(body)]


def test_the_pipeline_is_wired_like_the_steps() -> None:
    declared = [tensor.name for tensor in INTERFACES["pipeline"].inputs]
    wires = backend_wires()[: len(declared)]
    assert [name for name, _, _ in wires] == declared
    wanted = {
        (name, step.role, tensor)
        for step in STEPS
        for tensor, name in step.inputs
        if name in declared
    }
    assert wanted > set(wires)
    # What goes to two steps is the llm's: the tokenizer only passes it on, or pads with it.
    twice = wanted - set(wires)
    assert {(role, tensor) for _, role, tensor in twice} == {
        ("tokenize", "REQUEST_OUTPUT_LEN"),
        ("tokenize", "END_ID"),
        ("tokenize", "PAD_ID"),
    }


def test_the_pipeline_declares_what_the_steps_take() -> None:
    rows = {
        "llm": backend_rows("LlmInputs"),
        "tokenize": backend_rows("TokenizeInputs"),
        "pipeline": backend_rows("OwnPipelineInputs"),
    }
    wires = {name: (step, tensor) for name, step, tensor in backend_wires()}
    assert list(wires) == [tensor.name for tensor in BLS_INTERFACE.inputs]
    for tensor in BLS_INTERFACE.inputs:
        step, name = wires[tensor.name]
        dtype, dims, optional = rows[step][name]
        assert tensor.dims == dims, tensor.name
        assert tensor.optional == optional, tensor.name
        if tensor.dtype not in DTYPE_CHOICES and dtype:
            assert tensor.dtype == dtype, tensor.name


def test_an_ensemble_differs_from_bls_in_what_it_leaves_out() -> None:
    declared = INTERFACES["pipeline"].inputs
    for tensor, other in zip(declared, BLS_INTERFACE.inputs, strict=False):
        expected = replace(other, optional=True) if tensor.name == REFUSED_BY_TOKENIZE else other
        assert tensor == expected
    assert BLS_INTERFACE.outputs == INTERFACES["pipeline"].outputs


def test_the_pipeline_answers_what_the_llm_answers() -> None:
    inner = {"output_ids", "sequence_length", "context_phase_params", "flow"}
    llm = [t for t in INTERFACES["llm"].outputs if t.name not in inner]
    text_first = sorted(llm, key=lambda tensor: tensor.name != "text_output")
    assert list(INTERFACES["pipeline"].outputs) == text_first
