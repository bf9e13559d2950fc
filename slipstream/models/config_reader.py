# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Typed access to a checkpoint's config.json, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

_MAX_SIZE = (1 << 31) - 1

T = TypeVar("T", int, float, bool, str)


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file, field or tensor."""


class LackingError(CheckpointError):
    """A configuration that is in order and asks for what its family lacks and transformers has."""


class ConfigReader:
    """Reads fields of one JSON object; ``null`` counts as absent.

    ``where`` prefixes every message, for example ``config.json: rope_scaling.``.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str = "config.json: ",
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._values = values
        self._where = where
        self._names = names or {}

    def with_defaults(self, **defaults: Any) -> ConfigReader:
        """The same object with values for fields that are not there; an explicit null stays."""
        named = {self._name(name): value for name, value in defaults.items()}
        return ConfigReader({**named, **self._values}, self._where, self._names)

    def with_names(self, **names: str) -> ConfigReader:
        """The same object, where a field is called ``names[field]``; messages say that name."""
        return ConfigReader(self._values, self._where, {**self._names, **names})

    def with_values(self, **values: Any) -> ConfigReader:
        """The same object with other values."""
        named = {self._name(name): value for name, value in values.items()}
        return ConfigReader({**self._values, **named}, self._where, self._names)

    def is_text(self, name: str) -> bool:
        return isinstance(self._value(name), str)

    def has(self, name: str) -> bool:
        return self._value(name) is not None

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The field as ``kind``. Raises CheckpointError if it is missing without a default or of
        another type; an integer is accepted where a float is asked for."""
        value = self._value(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._where}{self._name(name)} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.invalid(name, f"a {kind.__name__}")
        return value

    def positive(self, name: str, default: int | None = None, limit: int = _MAX_SIZE) -> int:
        """An integer from 1 to ``limit``: sizes beyond reason would be allocated before they fail.
        Raises CheckpointError."""
        value = self.get(name, int, default)
        if value <= 0:
            raise self.invalid(name, "a number above 0")
        if value > limit:
            raise self.invalid(name, f"a number from 1 to {limit}")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self.get(name, float, default)
        if not 0.0 < value < float("inf"):
            raise self.invalid(name, "a finite number above 0")
        return value

    def optional_float(self, name: str) -> float | None:
        """A finite number above 0, None when absent."""
        return self.positive_float(name) if self.has(name) else None

    def flags(self, name: str, default: list[int]) -> list[int]:
        """A list of 0 and 1 as long as the default."""
        values = self._value(name)
        if values is None:
            return default
        if not isinstance(values, list) or len(values) != len(default) or set(values) - {0, 1}:
            raise self.invalid(name, f"a list of {len(default)} zeros and ones")
        return list(values)

    def positive_floats(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0. Raises CheckpointError, also if it is missing."""
        values = self._value(name)
        if not isinstance(values, list) or not all(
            isinstance(value, (int, float)) and 0.0 < value < float("inf") for value in values
        ):
            raise self.invalid(name, "a list of finite numbers above 0")
        return tuple(map(float, values))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None when absent."""
        values = self._value(name)
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise self.invalid(name, "a list of integers")
        return tuple(map(int, values))

    def strings(self, name: str, allowed: tuple[str, ...]) -> list[str] | None:
        """A list of ``allowed`` words, None when absent."""
        values = self._value(name)
        if values is None:
            return None
        if not isinstance(values, list) or not set(values) <= set(allowed):
            raise self.invalid(name, "a list of " + " and ".join(map(repr, allowed)))
        return list(values)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty when absent."""
        value = self._value(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
            raise self.invalid(name, "a token id or a list of them")
        return tuple(ids)

    def child(self, name: str) -> ConfigReader:
        """The object in a field; empty when absent."""
        value = self._value(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.invalid(name, "an object")
        return ConfigReader(value, f"{self._where}{self._name(name)}.")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a field that is present with a value other than the allowed ones."""
        if not self._is_one_of(name, allowed):
            raise self.invalid(name, _choices(allowed))

    def has_only(self, name: str, *served: Any) -> None:
        """The same for values that transformers honours: raises LackingError."""
        if not self._is_one_of(name, served):
            raise self.lacking(name, _choices(served))

    def invalid(self, name: str, expected: str) -> CheckpointError:
        return CheckpointError(self._refusal(name, expected))

    def lacking(self, name: str, served: str) -> LackingError:
        return LackingError(self._refusal(name, served))

    def _refusal(self, name: str, supported: str) -> str:
        value = self._value(name)
        return f"{self._where}{self._name(name)} is {value!r}; supported: {supported}"

    def _is_one_of(self, name: str, values: tuple[Any, ...]) -> bool:
        value = self._value(name)
        return value is None or value in values

    def _name(self, name: str) -> str:
        return self._names.get(name, name)

    def _value(self, name: str) -> Any:
        return self._values.get(self._name(name))


def _choices(values: tuple[Any, ...]) -> str:
    return " or ".join(repr(choice) for choice in values) or "absent"
