# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of one model that the backend serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slipstream.config import Role, SlipstreamConfig, all_options, nearest, role_parameters
from slipstream.repository.drop_in import (
    BLS_PLACEHOLDERS,
    MARKERS,
    OTHER_KEYS,
    PLACEHOLDERS,
    QUEUE_SIZE,
)
from slipstream.repository.findings import Report
from slipstream.repository.lint_instances import check_instances
from slipstream.repository.render import (
    ACCUMULATE,
    BACKEND,
    interface_of,
    is_bls,
    is_role,
    type_number,
)
from slipstream.repository.tensors import DTYPE_CHOICES, Interface, Tensor

_ROLES: tuple[Role, ...] = ("llm", "tokenize", "detokenize", "pipeline")
_MODEL_KEYS: dict[Role, tuple[str, ...]] = {
    "llm": ("model", "gpt_model_path", "engine_dir"),
    "tokenize": ("tokenizer", "tokenizer_dir"),
    "detokenize": ("tokenizer", "tokenizer_dir"),
    "pipeline": ("tokenizer", "tokenizer_dir"),
}


def check_name(name: str, message: Any, report: Report) -> None:
    """The configuration's name against the folder's."""
    if not message.name:
        report.warning("name", f"not set; expected {name!r}, the name of the folder")
    elif message.name != name:
        report.error("name", f"{message.name!r} differs from the folder's name {name!r}")
    if message.max_batch_size < 1:
        report.error(
            "max_batch_size",
            f"{message.max_batch_size}: must be at least 1, clients send a batch dimension",
        )


def check_tokenizer(key: str, message: Any, llm: Any, report: Report) -> None:
    """A model's tokenizer against that of the ``llm`` that makes its text."""
    mine, theirs = _tokenizer(message), _tokenizer(llm)
    if mine and theirs and Path(mine) != Path(theirs):
        report.warning(key, f"has tokenizer {mine!r}, but {llm.name} makes text with {theirs!r}")


def _tokenizer(message: Any) -> str:
    """As written; an ``llm`` takes its model's if none is named. Empty: nothing to tell."""
    parameters = {key: value.string_value.strip() for key, value in message.parameters.items()}
    if parameters.get("worker") == "scripted":
        return ""
    keys = ["tokenizer", "tokenizer_dir"]
    if is_role(message, "llm"):
        keys += _MODEL_KEYS["llm"]
    return next((parameters[key] for key in keys if parameters.get(key)), "")


def check_model(name: str, message: Any, report: Report) -> None:
    """Checks a model; one of another backend only by its name."""
    if message.backend != BACKEND:
        known = f"; the nearest is {BACKEND!r}" if message.backend else f"; expected {BACKEND!r}"
        report.warning("backend", f"{message.backend!r} is not checked{known}")
        return
    check_name(name, message, report)
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    role = parameters.get("role", "")
    if role not in _ROLES:
        what = f"{role!r} is none of {', '.join(_ROLES)}" if role else "not set"
        near = nearest(role or name, _ROLES)
        report.error("parameters[role]", f"{what}; the nearest is {near!r}")
        return
    check_tensors(message, interface_of(message), report)
    drop_in = BLS_PLACEHOLDERS if is_bls(message) else PLACEHOLDERS[role]
    _check_parameters(role, parameters, drop_in, report)
    check_instances(role, message, parameters, report)
    if role in ("llm", "pipeline") and not message.HasField("model_transaction_policy"):
        report.warning("model_transaction_policy", "not set: no streaming; set decoupled: true")


def check_tensors(message: Any, interface: Interface, report: Report) -> None:
    """The declared tensors against the interface: names, order, types, dims and flags."""
    for kind, declared, expected in (
        ("input", message.input, interface.inputs),
        ("output", message.output, interface.outputs),
    ):
        known = [tensor.name for tensor in expected]
        names = [entry.name for entry in declared]
        for name in sorted({name for name in names if names.count(name) > 1}):
            report.error(f"{kind}[{name}]", "declared twice")
        by_name = {entry.name: entry for entry in declared}
        for name in names:
            if name not in known:
                report.error(
                    f"{kind}[{name}]", f"no such tensor; the nearest is {nearest(name, known)!r}"
                )
        for tensor in expected:
            if tensor.name in by_name:
                _check_tensor(f"{kind}[{tensor.name}]", by_name[tensor.name], tensor, report)
            elif kind == "input" and not tensor.optional:
                report.error(f"{kind}[{tensor.name}]", "missing, and clients must send it")
            else:
                report.warning(f"{kind}[{tensor.name}]", "missing: clients may use it")
        if kind == "output" and [n for n in names if n in known][:2] != known[:2]:
            report.error(kind, f"the first must be {' and '.join(known[:2])}, in this order")


def _check_tensor(key: str, entry: Any, tensor: Tensor, report: Report) -> None:
    choices = DTYPE_CHOICES.get(tensor.dtype, (tensor.dtype,))
    if entry.data_type not in [type_number(choice) for choice in choices]:
        expected = " or ".join(f"TYPE_{choice}" for choice in choices)
        report.error(f"{key}.data_type", f"must be {expected}")
    if tuple(entry.dims) != tensor.dims:
        report.error(f"{key}.dims", f"{list(entry.dims)}, must be {list(tensor.dims)}")
    has_reshape = entry.HasField("reshape")
    if has_reshape != tensor.scalar or (has_reshape and len(entry.reshape.shape)):
        expected = "must be `reshape { shape: [ ] }`" if tensor.scalar else "must not be set"
        report.warning(f"{key}.reshape", expected)
    if not hasattr(entry, "optional"):
        return
    if entry.optional and not tensor.optional:
        report.error(f"{key}.optional", "must not be optional")
    if tensor.optional and not entry.optional:
        report.warning(f"{key}.optional", "must be true: clients may leave it out")
    if entry.allow_ragged_batch != tensor.ragged:
        report.warning(f"{key}.allow_ragged_batch", f"must be {str(tensor.ragged).lower()}")


def _check_parameters(
    role: Role, parameters: dict[str, str], drop_in: dict[str, str], report: Report
) -> None:
    """drop_in: the keys of a configuration that is written in those of TensorRT-LLM."""
    own = role_parameters(SlipstreamConfig(), role)
    known = [*own, *PLACEHOLDERS[role], *OTHER_KEYS[role]]
    for key in parameters:
        if key not in known:
            report.error(f"parameters[{key}]", f"unknown; the nearest is {nearest(key, known)!r}")
    for key in (*own, ACCUMULATE):
        if key in parameters and key != "role":
            _check_value(key, parameters[key], report)
    names = _MODEL_KEYS[role]
    scripted = role == "llm" and parameters.get("worker") == "scripted"
    named = scripted or any(parameters.get(name, "").strip() for name in names)
    if not named and role == "pipeline":
        report.warning(f"parameters[{names[0]}]", "not set; the llm's applies, once it is loaded")
    elif not named:
        report.error(f"parameters[{names[0]}]", "not set; it must name a Hugging Face directory")
    in_drop_in_keys = bool(MARKERS & parameters.keys())
    expected = own if not in_drop_in_keys else drop_in | (QUEUE_SIZE if role == "llm" else {})
    for key in expected:
        default = f"; {own[key]!r} applies" if own.get(key) else ""
        if key not in parameters:
            report.warning(f"parameters[{key}]", f"missing{default}")
        elif default and not in_drop_in_keys and not parameters[key].strip():
            report.warning(f"parameters[{key}]", f"empty{default}")


def _check_value(key: str, text: str, report: Report) -> None:
    """The text of one of our own parameters against its option's type and limits."""
    if not text.strip():
        return  # not set
    option = all_options()[key]
    value: Any = text.strip()
    if option.field.annotation in (bool, bool | None):
        value = value.lower()
    elif "dict" in str(option.field.annotation):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            report.error(f"parameters[{key}]", f"is not JSON: {error}")
            return
    section: Any = SlipstreamConfig.model_fields[option.section].annotation
    try:
        TypeAdapter(section).validate_python({key: value}, strict=False)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input should be ")
        report.error(f"parameters[{key}]", f"is {text!r}; must be {message}")
