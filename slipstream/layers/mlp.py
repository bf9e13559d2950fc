# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward block."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class GatedMlp(nn.Module):
    """``down(silu(gate(x)) * up(x))`` with gate and up in one matrix, gate first."""

    def __init__(self, hidden: int, intermediate: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=bias, dtype=dtype)
        self.down = nn.Linear(intermediate, hidden, bias=bias, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down(F.silu(gate).mul_(up))
        return out
