# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The options as a flat list, derived from the schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from slipstream.config.schema import Role, Section, SlipstreamConfig


@dataclass(frozen=True, slots=True)
class Option:
    """One option: where it is written and where its value goes."""

    section: str
    name: str
    field: FieldInfo
    roles: tuple[Role, ...]

    @property
    def help(self) -> str:
        return self.field.description or ""


@cache
def all_options() -> dict[str, Option]:
    """Every option by name, in the order of the schema."""
    options: dict[str, Option] = {}
    for section, section_field in SlipstreamConfig.model_fields.items():
        kind = section_field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for name, field in kind.model_fields.items():
            assert name not in options, f"option {name} is in two sections"
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            options[name] = Option(section, name, field, tuple(extra["roles"]))  # type: ignore[arg-type]
    return options


def value_of(config: SlipstreamConfig, name: str) -> Any:
    """The value of one option."""
    return getattr(getattr(config, all_options()[name].section), name)


def parameter_text(value: Any) -> str:
    """A value as the text of a ``config.pbtxt`` parameter; None is one that is not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return str(value)


def role_parameters(config: SlipstreamConfig, role: Role) -> dict[str, str]:
    """The parameters that a role's ``config.pbtxt`` carries, all of them, defaults included."""
    parameters: dict[str, str] = {"role": role}
    for name, option in all_options().items():
        if role in option.roles:
            parameters[name] = parameter_text(value_of(config, name))
    return parameters
