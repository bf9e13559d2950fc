# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Dense feed-forward blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.layers.device import has_kernels
from slipstream.layers.linear import GatedLinear, Linear, Residual, Undivided

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
}


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """``gated``: ``down(act(gate(x)) * up(x))``; else ``down(act(up(x)))``."""

    intermediate_size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False


class GatedMlp(nn.Module):
    """``down(act(gate(x)) * up(x))`` with gate and up in one matrix, gate first."""

    def __init__(self, hidden_size: int, spec: MlpSpec, dtype: torch.dtype) -> None:
        super().__init__()
        inner = spec.intermediate_size
        self._activation = ACTIVATIONS[spec.activation]
        self.gate_up = GatedLinear(hidden_size, inner, spec.activation, bias=spec.bias, dtype=dtype)
        self.down = Linear(inner, hidden_size, bias=spec.bias, dtype=dtype)

    def forward(
        self, x: torch.Tensor | Undivided, residual: Residual | None = None
    ) -> torch.Tensor | Undivided:
        """x: ``[tokens, hidden_size]``, as is the result, which may have joined the residual: see
        ``Linear.joined``."""
        rows = self.gate_up.rows
        if isinstance(x, Undivided):
            inner = self.gate_up.gated_by_kernels(x)
        elif rows is not None:
            inner = rows.gated(self.gate_up(x), self.gate_up.activation)
        elif has_kernels(x.device):
            inner = self.gate_up.gated_by_kernels(x)
        else:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            inner = self._activation(gate).mul_(up)
        if residual is not None:
            return self.down.joined(inner, residual)
        out: torch.Tensor = self.down(inner)
        return out


class PlainMlp(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, hidden_size: int, spec: MlpSpec, dtype: torch.dtype) -> None:
        super().__init__()
        inner = spec.intermediate_size
        self._name = spec.activation
        self._activation = ACTIVATIONS[spec.activation]
        self.up = Linear(hidden_size, inner, bias=spec.bias, dtype=dtype)
        self.down = Linear(inner, hidden_size, bias=spec.bias, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[tokens, hidden_size]``, as is the result."""
        inner = self.up(x)
        rows = self.up.rows
        inner = self._activation(inner) if rows is None else rows.activate_(inner, self._name)
        out: torch.Tensor = self.down(inner)
        return out
