# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of an ensemble: its maps, type-checked from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from slipstream.config import nearest
from slipstream.repository.findings import Report
from slipstream.repository.lint_model import check_name, check_tensors, check_tokenizer
from slipstream.repository.render import BACKEND, is_role
from slipstream.repository.tensors import INTERFACES
from slipstream.repository.wiring import REFUSED_BY_TOKENIZE, STEPS


@dataclass(frozen=True, slots=True)
class _Signal:
    """A tensor of the ensemble: who makes it, and its declaration there."""

    source: str
    data_type: int
    dims: tuple[int, ...]
    optional: bool = False


def check_ensemble(
    name: str,
    message: Any,
    models: Mapping[str, Any],
    broken: Set[str],
    report: Report,
) -> None:
    """Checks an ensemble against the models (by folder name) that its steps call.

    broken: models whose configuration cannot be read; an ensemble of one is not checked further.
    """
    check_name(name, message, report)
    if message.platform != "ensemble":
        report.error("platform", f"{message.platform!r}, must be 'ensemble'")
    if not message.ensemble_scheduling.step:
        report.error("ensemble_scheduling", "no steps")
        return
    if not _steps_exist(message, models, broken, report):
        return
    if _is_ours(message, models):
        check_tensors(message, INTERFACES["pipeline"], report)
    _check_tokenizers(message, models, report)
    signals = {
        entry.name: _Signal("the client", entry.data_type, tuple(entry.dims), entry.optional)
        for entry in message.input
    }
    _collect_outputs(message, models, signals, report)
    used: set[str] = set()
    for step in message.ensemble_scheduling.step:
        _check_inputs(step, models[step.model_name], signals, used, report)
        _check_wiring(step, models[step.model_name], report)
        if not step.model_version:
            report.warning(
                f"step[{step.model_name}].model_version", "not set; -1 takes the latest version"
            )
    _check_ensemble_outputs(message, signals, used, report)
    for signal in sorted(signals.keys() - used):
        report.warning(f"tensor[{signal}]", f"made by {signals[signal].source}, but never used")


def _steps_exist(message: Any, models: Mapping[str, Any], broken: Set[str], report: Report) -> bool:
    """Whether every step's model can be looked at; says so of those that cannot."""
    for step in message.ensemble_scheduling.step:
        name = step.model_name
        if name in broken:
            report.warning(f"step[{name}]", f"not checked: {name}/config.pbtxt cannot be read")
        elif name not in models:
            report.error(
                f"step[{name}]", f"no such model; the nearest is {nearest(name, models)!r}"
            )
    return all(step.model_name in models for step in message.ensemble_scheduling.step)


def _is_ours(message: Any, models: Mapping[str, Any]) -> bool:
    return any(is_role(models[s.model_name], "llm") for s in message.ensemble_scheduling.step)


def _check_tokenizers(message: Any, models: Mapping[str, Any], report: Report) -> None:
    steps = [
        (step.model_name, models[step.model_name]) for step in message.ensemble_scheduling.step
    ]
    for llm in (model for _, model in steps if is_role(model, "llm")):
        for name, model in steps:
            if any(is_role(model, role) for role in ("tokenize", "detokenize")):
                check_tokenizer(f"step[{name}]", model, llm, report)


def _collect_outputs(
    message: Any, models: Mapping[str, Any], signals: dict[str, _Signal], report: Report
) -> None:
    for step in message.ensemble_scheduling.step:
        key = f"step[{step.model_name}]"
        model = models[step.model_name]
        if model.max_batch_size < message.max_batch_size:
            report.error(
                f"{key}",
                f"takes batches of {model.max_batch_size}, the ensemble of "
                f"{message.max_batch_size}; max_batch_size must not be larger",
            )
        outputs = {entry.name: entry for entry in model.output}
        for tensor, signal in step.output_map.items():
            where = f"{key}.output_map[{tensor}]"
            entry = outputs.get(tensor)
            if entry is None:
                report.error(
                    where,
                    f"{step.model_name} has no such output; the nearest is "
                    f"{nearest(tensor, outputs)!r}",
                )
            elif signal in signals:
                report.error(where, f"{signal!r} is already made by {signals[signal].source}")
            else:
                source = f"{step.model_name}'s output {tensor}"
                signals[signal] = _Signal(source, entry.data_type, tuple(entry.dims))


def _check_inputs(
    step: Any,
    model: Any,
    signals: Mapping[str, _Signal],
    used: set[str],
    report: Report,
) -> None:
    inputs = {entry.name: entry for entry in model.input}
    key = f"step[{step.model_name}].input_map"
    for tensor, name in step.input_map.items():
        where = f"{key}[{tensor}]"
        used.add(name)
        entry = inputs.get(tensor)
        if entry is None:
            report.error(
                where,
                f"{step.model_name} has no such input; the nearest is {nearest(tensor, inputs)!r}",
            )
            continue
        signal = signals.get(name)
        if signal is None:
            near = nearest(name, signals)
            report.error(where, f"nothing makes {name!r}; the nearest is {near!r}")
            continue
        _check_types(where, signal, entry, report)
        if signal.optional and not entry.optional and name != REFUSED_BY_TOKENIZE:
            report.error(where, f"is required, but {name!r} is optional for clients")
    for name, entry in inputs.items():
        if not entry.optional and name not in step.input_map:
            report.error(f"{key}[{name}]", f"missing, and {step.model_name} requires it")


def _check_wiring(step: Any, model: Any, report: Report) -> None:
    """A step of ours against the generated wiring: a map left out is a feature lost."""
    if model.backend != BACKEND or "role" not in model.parameters:
        return
    role = model.parameters["role"].string_value
    for wired in STEPS:
        if wired.role != role:
            continue
        for tensor, signal in wired.inputs:
            if tensor not in step.input_map:
                report.warning(
                    f"step[{step.model_name}].input_map[{tensor}]",
                    f"missing: {signal!r} does not reach {step.model_name}",
                )
        for tensor, _ in wired.outputs:
            if tensor not in step.output_map:
                report.warning(f"step[{step.model_name}].output_map[{tensor}]", "missing")


def _check_ensemble_outputs(
    message: Any, signals: Mapping[str, _Signal], used: set[str], report: Report
) -> None:
    for entry in message.output:
        where = f"output[{entry.name}]"
        used.add(entry.name)
        signal = signals.get(entry.name)
        if signal is None:
            near = nearest(entry.name, signals)
            report.error(where, f"no step makes it; the nearest is {near!r}")
        else:
            _check_types(where, signal, entry, report)


def _check_types(where: str, signal: _Signal, entry: Any, report: Report) -> None:
    if signal.data_type != entry.data_type:
        name = model_config_pb2.DataType.Name
        report.error(
            where,
            f"is {name(entry.data_type)}, but {signal.source} makes {name(signal.data_type)}",
        )
    dims = tuple(entry.dims)
    fits = len(dims) == len(signal.dims) and all(
        a == b or -1 in (a, b) for a, b in zip(dims, signal.dims, strict=True)
    )
    if not fits:
        report.error(where, f"has dims {list(dims)}, but {signal.source} makes {list(signal.dims)}")
