# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Typed access to a checkpoint's config.json, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T", int, float, bool, str)


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file, field or tensor."""


class ConfigReader:
    """Reads fields of one JSON object; ``null`` counts as absent.

    ``where`` prefixes every message, for example ``config.json: rope_scaling.``.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json: ") -> None:
        self._values = values
        self._where = where

    def with_defaults(self, **defaults: Any) -> ConfigReader:
        """The same object with values for fields that are absent."""
        present = {name: value for name, value in self._values.items() if value is not None}
        return ConfigReader({**defaults, **present}, self._where)

    def without(self, *names: str) -> ConfigReader:
        """The same object less fields that its reader has dealt with."""
        return ConfigReader({k: v for k, v in self._values.items() if k not in names}, self._where)

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The field as ``kind``. Raises CheckpointError if it is missing without a default or of
        another type; an integer is accepted where a float is asked for."""
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._where}{name} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.invalid(name, f"a {kind.__name__}")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, int, default)
        if value <= 0:
            raise self.invalid(name, "a number above 0")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self.get(name, float, default)
        if not 0.0 < value < float("inf"):
            raise self.invalid(name, "a finite number above 0")
        return value

    def positive_floats(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0. Raises CheckpointError, also if it is missing."""
        values = self._values.get(name)
        if not isinstance(values, list) or not all(
            isinstance(value, (int, float)) and 0.0 < value < float("inf") for value in values
        ):
            raise self.invalid(name, "a list of finite numbers above 0")
        return tuple(map(float, values))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None when absent."""
        values = self._values.get(name)
        if values is not None and not isinstance(values, list):
            raise self.invalid(name, "a list of integers")
        if any(not isinstance(value, int) for value in values or ()):
            raise self.invalid(name, "a list of integers")
        return None if values is None else tuple(map(int, values))

    def strings(self, name: str, allowed: tuple[str, ...]) -> list[str] | None:
        """A list of ``allowed`` words, None when absent."""
        values = self._values.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or not set(values) <= set(allowed):
            raise self.invalid(name, "a list of " + " and ".join(map(repr, allowed)))
        return list(values)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty when absent."""
        value = self._values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
            raise self.invalid(name, "a token id or a list of them")
        return tuple(ids)

    def child(self, name: str) -> ConfigReader:
        """The object in a field; empty when absent."""
        value = self._values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.invalid(name, "an object")
        return ConfigReader(value, f"{self._where}{name}.")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a field that is present with a value other than the allowed ones."""
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise self.invalid(name, " or ".join(repr(choice) for choice in allowed) or "absent")

    def invalid(self, name: str, expected: str) -> CheckpointError:
        value = self._values.get(name)
        return CheckpointError(f"{self._where}{name} is {value!r}; supported: {expected}")
