# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Command line flags, generated from the options of the configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from slipstream.config import ConfigError, Option, all_options, load_config, parameter_text

_PREFIX = "option_"


def with_config(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command ``--config`` and a flag for every option of ``sections``.

    The command takes ``config: SlipstreamConfig`` as its first parameter, built from the flags over
    the file over the defaults; its own parameter ``model``, if it has one, counts as the flag of
    that name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [o for o in all_options().values() if o.section in sections]

        @wraps(command)
        def wrapper(**values: Any) -> None:
            file = values.pop("config_file")
            overrides = {}
            for option in options:
                value = values.pop(_PREFIX + option.name, None)
                if value is not None:
                    overrides[option.name] = _convert(option, value)
            if values.get("model"):
                overrides["model"] = values["model"]
            values.pop("model", None)
            command(load_config(file, overrides), **values)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        flags = [_flag(o) for o in options if o.name != "model"]
        parameters = [*own, _file_flag(), *flags]
        # typer reads both; they must agree.
        setattr(wrapper, "__signature__", inspect.Signature(parameters))  # noqa: B010
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _file_flag() -> inspect.Parameter:
    option = typer.Option(
        "--config", "-c", help="a slipstream.yaml", exists=True, dir_okay=False, show_default=False
    )
    return _parameter("config_file", Path, option)


def _flag(option: Option) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    annotation = option.field.annotation
    default = option.field.default
    shown = f" (default: {parameter_text(default)})" if default not in ("", {}, None) else ""
    settings: dict[str, Any] = {
        "help": option.help + shown,
        "show_default": False,
        "rich_help_panel": f"Section {option.section}",
    }
    kind: Any = str
    if annotation in (bool, bool | None):
        kind, flag = bool, f"{flag}/--no-{flag[2:]}"
    elif annotation in (int, float):
        kind = annotation
    elif get_origin(annotation) is Literal:
        settings["metavar"] = "|".join(get_args(annotation))
    return _parameter(_PREFIX + option.name, kind, typer.Option(flag, **settings))


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _convert(option: Option, value: Any) -> Any:
    if get_origin(option.field.annotation) is not dict:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--{option.name} is {value!r}, which is not JSON: {error}") from None
