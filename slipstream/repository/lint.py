# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds the faults of a model repository before a server does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2

from slipstream.config import nearest
from slipstream.repository.build import CONFIG_NAME
from slipstream.repository.findings import Finding, Report
from slipstream.repository.lint_ensemble import check_ensemble
from slipstream.repository.lint_model import check_model
from slipstream.repository.lint_pipeline import check_pipeline
from slipstream.repository.render import is_role, parse_text

_NO_FIELD = re.compile(r'Message type "inference\.([\w.]+)" has no field named "([^"]*)"')


def lint_repository(folder: Path) -> list[Finding]:
    """Checks every model of a repository; an empty list means that a server can load it."""
    files = sorted(folder.glob(f"*/{CONFIG_NAME}"))
    if not files:
        return [Finding(folder, "", f"no */{CONFIG_NAME}: not a model repository")]
    reports = {file: Report(file) for file in files}
    models: dict[str, Any] = {}
    for file, report in reports.items():
        message = _parse(file, report)
        if message is None:
            continue
        models[file.parent.name] = message
        _check_versions(file.parent, report)
        for key, text in _placeholders(message):
            report.error(key, f"placeholder left in {text!r}: fill it, or leave the key out")
    broken = {file.parent.name for file in files} - models.keys()
    for name, message in models.items():
        report = reports[folder / name / CONFIG_NAME]
        if message.HasField("ensemble_scheduling") or message.platform == "ensemble":
            check_ensemble(name, message, models, broken, report)
        else:
            check_model(name, message, report)
            if is_role(message, "pipeline"):
                check_pipeline(message, models, broken, report)
    return [finding for report in reports.values() for finding in report.findings]


def _parse(file: Path, report: Report) -> Any | None:
    try:
        text = file.read_text(encoding="utf-8")
        return parse_text(text)
    except OSError as error:
        report.error("", f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        report.error("", f"is not UTF-8: {error.reason} at byte {error.start}")
    except text_format.ParseError as error:
        _explain(error, text, report)
    return None


def _explain(error: text_format.ParseError, text: str, report: Report) -> None:
    lines = text.splitlines()
    line = error.GetLine() or 0
    left = re.search(r"(\w+)\s*:\s*(\$\{\w+\})", lines[line - 1] if 0 < line <= len(lines) else "")
    if left is not None:
        report.error(f"line {line}: {left[1]}", f"placeholder {left[2]} is not filled")
        return
    match = _NO_FIELD.search(str(error))
    if match is None:
        report.error(f"line {error.GetLine()}", _without_position(error))
        return
    kind, name = match.groups()
    fields = _field_names(kind)
    report.error(
        f"line {error.GetLine()}: {name}",
        f"{kind} has no such field; the nearest is {nearest(name, fields)!r}",
    )


def _without_position(error: text_format.ParseError) -> str:
    return re.sub(r"^\d+(:\d+)? : ", "", str(error))


def _field_names(kind: str) -> list[str]:
    descriptor: Any = model_config_pb2.DESCRIPTOR
    for part in kind.split("."):
        types = getattr(descriptor, "message_types_by_name", None)
        descriptor = (types if types is not None else descriptor.nested_types_by_name).get(part)
        if descriptor is None:
            return []
    return [field.name for field in descriptor.fields]


def _check_versions(folder: Path, report: Report) -> None:
    if not any(child.is_dir() and child.name.isdigit() for child in folder.iterdir()):
        report.error("", f"{folder.name} has no version folder; create {folder.name}/1")


def _placeholders(message: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string with ``${`` in it, with its key."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                entry = value[key]
                if isinstance(entry, str):
                    found: Iterator[tuple[str, str]] = iter([(f"{here}[{key}]", entry)])
                else:
                    found = _placeholders(entry, f"{here}[{key}]")
                yield from ((k, text) for k, text in found if "${" in text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            children = [value] if isinstance(value, Message) else value
            for child in children:
                yield from _placeholders(child, here)
        elif field.type == FieldDescriptor.TYPE_STRING:
            texts = [value] if isinstance(value, str) else value
            yield from ((here, text) for text in texts if "${" in text)
