# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every declared input is honoured, or refused by its name."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest
from e2e_client import (
    Stream,
    http_post,
    infer,
    input_types,
    make_request,
    model_config,
    prompt,
    question,
    stub,
)
from e2e_fields import (
    NEUTRAL_ENSEMBLE,
    NEUTRAL_LLM,
    NOT_BY_ONE_NAME,
    REFUSED_ENSEMBLE,
    REFUSED_LLM,
    UNLIMITED_ENSEMBLE,
    UNLIMITED_LLM,
    WRONG_ENSEMBLE,
    WRONG_LLM,
)
from e2e_server import VOCAB, Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = grpc.StatusCode.UNIMPLEMENTED
MODELS = {"llm": "unary", "ensemble": "unary_ensemble", "steps": "unary_steps"}
both_ensembles = pytest.mark.parametrize("ensemble", ["unary_ensemble", "unary_steps"])


def fields_of(model: str, name: str, value: Any) -> dict[str, Any]:
    """A good request with one field added or replaced."""
    good = prompt([5, 6, 7], 2) if model == "unary" else question("a fox", 2)
    if name == "input_ids":
        good["input_lengths"] = len(value)
    if name == "messages":
        good["text_input"] = ""
    return good | {name: value}


def refusal(server: Server, model: str, name: str, value: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        infer(server.grpc, model, fields_of(model, name, value))
    return caught.value.code(), str(caught.value.details())


def called(ensemble: str, tensor: str, name: str) -> str:
    """How an ensemble's messages name a field: as its step does, the fused one in both ways."""
    return tensor if ensemble == "unary_steps" or tensor == name else f"{tensor} ({name})"


@pytest.mark.parametrize("base", MODELS)
def test_the_tables_cover_the_configuration(scripted: Server, base: str) -> None:
    config = model_config(scripted.grpc, base)
    declared = {entry.name for entry in config.input}
    wrong, unlimited = (
        (WRONG_LLM, UNLIMITED_LLM) if base == "llm" else (WRONG_ENSEMBLE, UNLIMITED_ENSEMBLE)
    )
    neutral = NEUTRAL_LLM if base == "llm" else NEUTRAL_ENSEMBLE
    refused = REFUSED_LLM if base == "llm" else REFUSED_ENSEMBLE
    tables = [{name for name, _, _ in wrong}, set(unlimited), set(neutral), set(refused)]
    assert set().union(*tables) == declared
    assert sum(len(table) for table in tables) == len(declared), "a field is in two tables"
    variant = model_config(scripted.grpc, MODELS[base])
    assert [(e.name, e.data_type, list(e.dims)) for e in variant.input] == [
        (e.name, e.data_type, list(e.dims)) for e in config.input
    ]


def ids_of(rows: list[tuple[str, Any, str]]) -> list[str]:
    return [f"{name}-{str(value)[:12]}" for name, value, _ in rows]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_LLM, ids=ids_of(WRONG_LLM))
def test_wrong_value_of_llm(scripted: Server, name: str, value: Any, message: str) -> None:
    code, details = refusal(scripted, "unary", name, value)
    assert re.search(message, details), details
    assert code is (grpc.StatusCode.INTERNAL if name == "stop" else INVALID)


@pytest.mark.parametrize(("name", "value", "message"), WRONG_ENSEMBLE, ids=ids_of(WRONG_ENSEMBLE))
@both_ensembles
def test_wrong_value_of_ensemble(
    scripted: Server, ensemble: str, name: str, value: Any, message: str
) -> None:
    code, details = refusal(scripted, ensemble, name, value)
    assert re.search(message, details), details
    if ensemble == "unary_ensemble" and name not in NOT_BY_ONE_NAME:
        assert re.search(rf"\b{name}\b", details), details
    assert code is INVALID


@pytest.mark.parametrize("name", REFUSED_LLM)
def test_refused_by_llm(scripted: Server, name: str) -> None:
    code, details = refusal(scripted, "unary", name, REFUSED_LLM[name])
    assert code is UNSUPPORTED
    assert details.startswith(f"{name}: not supported")


@pytest.mark.parametrize("name", REFUSED_ENSEMBLE)
@both_ensembles
def test_refused_by_ensemble(scripted: Server, ensemble: str, name: str) -> None:
    value, shown = REFUSED_ENSEMBLE[name]
    code, details = refusal(scripted, ensemble, name, value)
    assert code is UNSUPPORTED
    assert f"{called(ensemble, shown, name)}: not supported" in details


@pytest.mark.parametrize("name", NEUTRAL_LLM)
def test_neutral_values_of_llm(scripted: Server, name: str) -> None:
    neutral, asking = NEUTRAL_LLM[name]
    assert infer(scripted.grpc, "unary", fields_of("unary", name, neutral)).ids()
    code, details = refusal(scripted, "unary", name, asking)
    assert code is UNSUPPORTED
    assert re.match(rf"{name}: \S+ is not supported, must be ", details), details


@pytest.mark.parametrize("name", NEUTRAL_ENSEMBLE)
@both_ensembles
def test_neutral_values_of_ensemble(scripted: Server, ensemble: str, name: str) -> None:
    neutral, asking, shown = NEUTRAL_ENSEMBLE[name]
    assert infer(scripted.grpc, ensemble, fields_of(ensemble, name, neutral)).text()
    code, details = refusal(scripted, ensemble, name, asking)
    assert code is UNSUPPORTED
    shown = re.escape(called(ensemble, shown, name))
    assert re.search(rf"\b{shown}: \S+ is not supported, must be ", details), details


@pytest.mark.parametrize("name", UNLIMITED_LLM)
def test_any_value_of_llm(scripted: Server, name: str) -> None:
    reply = infer(scripted.grpc, "unary", fields_of("unary", name, UNLIMITED_LLM[name]))
    assert reply.ids()[-2:] == [5, 6]


@pytest.mark.parametrize("name", UNLIMITED_ENSEMBLE)
@both_ensembles
def test_any_value_of_ensemble(scripted: Server, ensemble: str, name: str) -> None:
    fields = fields_of(ensemble, name, UNLIMITED_ENSEMBLE[name])
    assert infer(scripted.grpc, ensemble, fields).outputs["text_output"].shape == (1,)


@pytest.mark.parametrize("model", MODELS.values())
def test_a_padding_token_may_lie_beyond_the_vocabulary(scripted: Server, model: str) -> None:
    plain, padded = (
        infer(scripted.grpc, model, fields_of(model, "pad_id", pad_id)) for pad_id in (-1, VOCAB)
    )
    result = "output_ids" if model == "unary" else "text_output"
    assert padded.outputs[result].tolist() == plain.outputs[result].tolist()


RETENTION = {
    "retention_token_range_starts": [0],
    "retention_token_range_ends": [2],
    "retention_token_range_priorities": [50],
    "retention_token_range_durations_ms": [-1],
}


def test_good_retention_ranges(scripted: Server) -> None:
    more = {"retention_decode_priority": [80], "retention_decode_duration_ms": [1000]}
    assert infer(scripted.grpc, "unary", prompt([5, 6, 7], 2) | RETENTION | more).ids()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("starts", -1, r"retention_token_range_starts: -1 is outside \[0, "),
        ("ends", 0, r"retention_token_range_ends: 0 must be -1 or greater than its start 0"),
        ("priorities", 101, r"retention_token_range_priorities: 101 is outside \[0, 100\]"),
        ("durations_ms", -2, r"retention_token_range_durations_ms: -2 is outside \[-1, "),
    ],
)
def test_wrong_retention_ranges(scripted: Server, name: str, value: int, message: str) -> None:
    field = f"retention_token_range_{name}"
    with pytest.raises(grpc.RpcError) as caught:
        infer(scripted.grpc, "unary", prompt([5, 6, 7], 2) | RETENTION | {field: [value]})
    assert caught.value.code() is INVALID
    assert re.search(message, str(caught.value.details())), caught.value.details()


@pytest.mark.parametrize("base", MODELS)
def test_wrong_types_are_refused_by_name(scripted: Server, base: str) -> None:
    """By the server itself, for every field."""
    model = MODELS[base]
    for name, dtype in input_types(scripted.grpc, model).items():
        other = "INT64" if dtype != "INT64" else "INT32"
        input_types(scripted.grpc, model)[name] = other
        try:
            value = np.zeros((1, 1), np.int64 if other == "INT64" else np.int32)
            code, details = refusal(scripted, model, name, value)
        finally:
            input_types(scripted.grpc, model)[name] = dtype
        assert code is INVALID, name
        assert f"'{name}'" in details, details


@pytest.mark.parametrize("name", ["input_ids", "input_lengths", "request_output_len"])
def test_required_inputs_of_llm(scripted: Server, name: str) -> None:
    fields = prompt([5, 6, 7], 2, seed=1)  # one more, since the server only counts them
    del fields[name]
    with pytest.raises(grpc.RpcError) as caught:
        infer(scripted.grpc, "unary", fields)
    assert caught.value.code() is INVALID
    assert name in str(caught.value.details())


@pytest.mark.parametrize(
    ("model", "nearest"),
    [("unary", "temperature"), ("unary_ensemble", "temperature"), ("unary_steps", "temperature")],
)
def test_unknown_parameters_are_refused_with_the_nearest_name(
    scripted: Server, model: str, nearest: str
) -> None:
    """HTTP's generate makes a parameter of every key that is no input: a typo must not pass."""
    good = {"text_input": "a fox", "max_tokens": 2}
    if model == "unary":
        good = {"input_ids": [5, 6], "input_lengths": 2, "request_output_len": 2}
    status, body = post_generate(scripted.http, model, good | {"temprature": 0.5})
    assert (status, "temprature: neither an input nor a parameter" in body) == (400, True), body
    assert f"the nearest is '{nearest}'" in body
    status, body = post_generate(scripted.http, model, good | {"identity": "x"})
    assert (status, "identity: neither an input nor a parameter" in body) == (400, True), body
    status, body = post_generate(scripted.http, model, good | {"id": "mine"})
    assert status == 200, body


@pytest.mark.parametrize("model", ["unary", "unary_ensemble", "unary_steps"])
def test_triton_s_timeout_counts_over_http_too(scripted: Server, model: str) -> None:
    good = {"text_input": "a fox", "max_tokens": 1500}
    if model == "unary":
        good = {"input_ids": [5, 6], "input_lengths": 2, "request_output_len": 1500}
    status, body = post_generate(scripted.http, model, good | {"end_id": -1, "timeout": 20_000})
    assert status != 200
    assert "deadline (timeout) passed" in body
    status, body = post_generate(scripted.http, model, good | {"timeout": -1})
    assert (status, "timeout: '-1' is not a number of microseconds" in body) == (400, True), body


@pytest.mark.parametrize("model", MODELS.values())
def test_a_priority_parameter_stays_with_triton_but_for_generate(
    scripted: Server, model: str
) -> None:
    """As docs/interface.md warns: what never comes cannot be refused."""
    good = prompt([5, 6], 2) if model == "unary" else question("a fox", 2)
    request = make_request(scripted.grpc, model, good, parameters={"priority": 77})
    stub(scripted.grpc).ModelInfer(request, timeout=30)
    with Stream(scripted.grpc) as stream:
        [reply] = stream.ask(model, good, parameters={"priority": 77})
        assert reply.error == ""
    status, body = http_post(scripted.http, f"/v2/models/{model}/infer", infer_body(model))
    assert status == 200, body
    status, body = post_generate(scripted.http, model, good | {"priority": 77})
    assert (status, "priority: 77 is outside [0, 9]" in body) == (400, True), body


def infer_body(model: str) -> dict[str, Any]:
    """A good request with a priority, for HTTP's infer."""
    values: dict[str, tuple[str, list[Any]]] = {
        "text_input": ("BYTES", ["a fox"]),
        "max_tokens": ("INT32", [2]),
    }
    if model == "unary":
        names = ("input_ids", "input_lengths", "request_output_len")
        values = {name: ("INT32", [1]) for name in names}
    inputs = [
        {"name": name, "datatype": dtype, "shape": [1, 1], "data": data}
        for name, (dtype, data) in values.items()
    ]
    return {"inputs": inputs, "parameters": {"priority": 77}}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("unary_ensemble", "max_tokens"),
        ("unary_steps", "in ensemble 'unary_steps', REQUEST_OUTPUT_LEN (max_tokens)"),
    ],
)
def test_an_ensemble_without_max_tokens_is_refused(scripted: Server, model: str, name: str) -> None:
    status, body = post_generate(scripted.http, model, {"text_input": "a fox"})
    assert (status, f'"{name}: this input is required"' in body) == (400, True), body


def post_generate(host: str, model: str, fields: dict[str, Any]) -> tuple[int, str]:
    """Status and body of HTTP's generate, errors included."""
    request = urllib.request.Request(
        f"http://{host}/v2/models/{model}/generate", json.dumps(fields).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
