# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading a configuration: command line over ``slipstream.yaml`` over defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from slipstream.config.options import all_options
from slipstream.config.schema import SlipstreamConfig
from slipstream.errors import SlipstreamError


class ConfigError(SlipstreamError, ValueError):
    """A configuration that cannot be used; one line per fault, each naming key, value and limit."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like ``name``; empty if there are none."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return close[0] if close else ""


def load_config(
    file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> SlipstreamConfig:
    """Reads ``file`` (YAML, by section) and applies ``overrides`` (option name -> value).

    Raises:
        ConfigError: a file that cannot be read, an unknown key, a value of the wrong type or
            outside its limits.
    """
    values = _read(file) if file is not None else {}
    for name, value in (overrides or {}).items():
        option = all_options().get(name)
        if option is None:
            raise ConfigError(
                f"unknown option {name!r}; the nearest is {nearest(name, all_options())!r}"
            )
        section = values.setdefault(option.section, {})
        if isinstance(section, dict):
            section[name] = value
    try:
        config = SlipstreamConfig.model_validate(values)
    except ValidationError as error:
        prefix = f"{file}: " if file is not None else ""
        lines = [prefix + _describe(fault) for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    _check_together(config)
    return config


def _check_together(config: SlipstreamConfig) -> None:
    scheduler = config.scheduler
    if 0 < scheduler.max_num_tokens < scheduler.max_num_seqs:
        raise ConfigError(
            f"max_num_tokens is {scheduler.max_num_tokens}, must be at least max_num_seqs "
            f"({scheduler.max_num_seqs}): every running sequence takes a token of a step's budget"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file}: expected sections ({_sections()}), found {loaded!r}")
    return {
        str(name): dict(body) if isinstance(body, dict) else body
        for name, body in loaded.items()
        if body is not None
    }


def _sections() -> str:
    return ", ".join(SlipstreamConfig.model_fields)


def _describe(fault: ErrorDetails) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return _describe_unknown([str(part) for part in fault["loc"]])
    if fault["type"] == "model_type":
        return f"{path} is {fault['input']!r}; expected a section with keys"
    message = fault["msg"].removeprefix("Input should be ")
    return f"{path} is {fault['input']!r}; must be {message}"


def _describe_unknown(path: list[str]) -> str:
    name = path[-1]
    option = all_options().get(name)
    if option is not None:
        return f"{'.'.join(path)}: {name} belongs to section {option.section}"
    if len(path) == 1:
        return (
            f"unknown section {name!r}; the nearest is "
            f"{nearest(name, SlipstreamConfig.model_fields)!r} (sections: {_sections()})"
        )
    here = [key for key, known in all_options().items() if known.section == path[0]]
    close = difflib.get_close_matches(name, here, n=1) or [nearest(name, all_options())]
    return f"unknown key {'.'.join(path)!r}; the nearest is {close[0]!r}"
