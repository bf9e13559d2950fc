# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint's tensors go: the table of a family, matched with a decoder's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from slipstream.models.config_reader import CheckpointError
from slipstream.models.spec import ArchSpec

Transform = Callable[[tuple[torch.Tensor, ...], ArchSpec], torch.Tensor]


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


@dataclass(frozen=True, slots=True)
class Copy:
    """Tensors to read and the (part of a) parameter to fill; ``target`` is for messages."""

    target: str
    parameter: torch.Tensor
    sources: tuple[str, ...]
    transform: Transform | None

    def run(self, tensors: tuple[torch.Tensor, ...], spec: ArchSpec) -> None:
        """Raises CheckpointError naming the tensors if they do not fit."""
        into = self.parameter
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if self.transform is not None:
            try:
                tensors = (self.transform(tensors, spec),)
            except (RuntimeError, IndexError):  # the transform reshapes what cannot be reshaped
                raise self._misfit(shapes) from None
        rows = sum(tensor.shape[0] if tensor.ndim else 0 for tensor in tensors)
        fits = all(tensor.shape[1:] == into.shape[1:] for tensor in tensors)
        if not fits or rows != into.shape[0]:
            raise self._misfit(shapes)
        start = 0
        for tensor in tensors:
            into[start : start + tensor.shape[0]].copy_(tensor)
            start += tensor.shape[0]

    def _misfit(self, shapes: list[tuple[int, ...]]) -> CheckpointError:
        found = ", ".join(f"{name} {s}" for name, s in zip(self.sources, shapes, strict=True))
        return CheckpointError(
            f"checkpoint tensors do not fit config.json: {found} for {self.target}, which is "
            f"{tuple(self.parameter.shape)}"
        )


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
