# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint's tensors go: the table of a family, matched with a decoder's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from slipstream.models.spec import ArchSpec

# Must work on meta tensors too, on which it is tried before anything is read.
Transform = Callable[[tuple[torch.Tensor, ...], ArchSpec], torch.Tensor]

# What a float parameter can be made from by conversion alone: narrower types need a scale.
_CONVERTIBLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What is being copied is in memory twice: a small part of a large tensor.
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class WeightRule:
    """The checkpoint tensors that make one target, stacked along the first dimension.

    A ``transform`` makes the whole target from them instead. ``otherwise`` is the rule for
    checkpoints that lack these tensors.
    """

    sources: tuple[str, ...]
    transform: Transform | None = None
    otherwise: WeightRule | None = None


# From a module or parameter of the decoder to checkpoint tensors. ``{layer}`` stands for the layer
# number, ``{expert}`` in sources for the index into the target's first dimension. Names of modules
# are without ``.weight`` and ``.bias``: both follow if the decoder's module has them. A target that
# this decoder does not have is skipped, so one table serves every variant of a family.
WeightTable = Mapping[str, str | WeightRule]


def stack(*sources: str) -> WeightRule:
    return WeightRule(sources)


def prefixed(prefix: str, table: WeightTable) -> WeightTable:
    """The same table for checkpoints that hold the model as a part, under ``prefix``."""

    def rule(value: str | WeightRule) -> str | WeightRule:
        if isinstance(value, str):
            return prefix + value
        otherwise = value.otherwise and rule(value.otherwise)
        assert not isinstance(otherwise, str)
        return WeightRule(tuple(prefix + s for s in value.sources), value.transform, otherwise)

    return {target: rule(value) for target, value in table.items()}


@dataclass(frozen=True, slots=True)
class Copy:
    """Tensors to read and the (part of a) parameter to fill; ``target`` is for messages."""

    target: str
    parameter: torch.Tensor
    sources: tuple[str, ...]
    transform: Transform | None

    def misfit(self, tensors: tuple[torch.Tensor, ...], spec: ArchSpec) -> str | None:
        """Why ``tensors`` cannot fill the parameter, None if they can.

        Looks at shapes and dtypes alone, so tensors and parameter may be on the meta device.
        """
        into = self.parameter
        found = ", ".join(
            f"{name} {tuple(tensor.shape)}"
            for name, tensor in zip(self.sources, tensors, strict=True)
        )
        reason = (
            f"tensors do not fit config.json: {found} for {self.target}, which is "
            f"{tuple(into.shape)}"
        )
        if self.transform is not None:
            try:
                tensors = (self.transform(tensors, spec),)
            except (RuntimeError, IndexError, ValueError):  # it reshapes what cannot be
                return reason
        rows = sum(tensor.shape[0] if tensor.ndim else 0 for tensor in tensors)
        fits = all(tensor.shape[1:] == into.shape[1:] for tensor in tensors)
        if not fits or rows != into.shape[0]:
            return reason
        for tensor in tensors:
            if tensor.dtype not in _CONVERTIBLE:
                names = ", ".join(self.sources)
                return f"{names} holds {_name(tensor.dtype)}, expected " + " or ".join(
                    map(_name, _CONVERTIBLE)
                )
        return None

    def converts(self, tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether any of ``tensors`` is of another dtype than the parameter."""
        return any(tensor.dtype != self.parameter.dtype for tensor in tensors)

    def pieces(
        self, tensors: tuple[torch.Tensor, ...], spec: ArchSpec
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of the parameter and what to copy into each, a bounded number of bytes at a time.

        ``tensors`` must fit.
        """
        if self.transform is not None:
            tensors = (self.transform(tensors, spec),)
        start = 0
        for tensor in tensors:
            for part in _in_pieces(tensor):
                yield self.parameter[start : start + part.shape[0]], part
                start += part.shape[0]


def _in_pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    row_bytes = max(tensor.nbytes // max(tensor.shape[0], 1), 1)
    return tensor.split(max(_PIECE_BYTES // row_bytes, 1))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def plan_copies(
    table: WeightTable,
    parameters: Mapping[str, torch.Tensor],
    num_layers: int,
    has: Callable[[str], bool],
) -> list[Copy]:
    """Every copy that fills ``parameters``; ``has`` tells which tensors the checkpoint holds."""
    copies: list[Copy] = []
    for pattern, value in table.items():
        rule = stack(value) if isinstance(value, str) else value
        for layer in range(num_layers if "{layer}" in pattern else 1):
            for name, suffix in _parameters_of(pattern.format(layer=layer), parameters):
                copies += _copies(rule, name, suffix, layer, parameters[name], has)
    left = set(parameters) - {copy.target for copy in copies}
    assert not left, f"the family's table lacks {sorted(left)}"
    return copies


def _parameters_of(
    target: str, parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str]]:
    """The target if it is a parameter, else the weight and bias it has as a module."""
    for suffix in ("", ".weight", ".bias"):
        if target + suffix in parameters:
            yield target + suffix, suffix


def _copies(
    rule: WeightRule,
    target: str,
    suffix: str,
    layer: int,
    parameter: torch.Tensor,
    has: Callable[[str], bool],
) -> Iterator[Copy]:
    def names(rule: WeightRule, expert: int = 0) -> tuple[str, ...]:
        return tuple(s.format(layer=layer, expert=expert) + suffix for s in rule.sources)

    chosen = rule
    while chosen.otherwise is not None and not all(map(has, names(chosen))):
        chosen = chosen.otherwise
    if any("{expert}" in source for source in chosen.sources):
        for expert in range(parameter.shape[0]):
            yield Copy(target, parameter[expert], names(chosen, expert), chosen.transform)
    else:
        yield Copy(target, parameter, names(chosen), chosen.transform)
