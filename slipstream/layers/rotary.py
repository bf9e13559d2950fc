# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al., RoFormer), the two halves of a head rotated."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn


def inverse_frequencies(
    head_dim: int,
    theta: float,
    kind: Literal["default", "linear", "llama3"] = "default",
    *,
    factor: float = 1.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_max_positions: int = 0,
) -> torch.Tensor:
    """Radians a position: float32 ``[head_dim / 2]``. The scalings are those of RopeSpec."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    base = 1.0 / theta**exponents
    if kind == "default":
        return base
    if kind == "linear":
        return base / factor
    wavelength = 2 * math.pi / base
    share = original_max_positions / wavelength - low_freq_factor
    smooth = (share / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return (1 - smooth) * base / factor + smooth * base


class RotaryEmbedding(nn.Module):
    """Tables for a batch of positions, and the rotation itself."""

    inverse_frequencies: torch.Tensor

    def __init__(self, frequencies: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        # The loader moves parameters off the meta device; this has to be real from the start.
        self.inverse_frequencies = frequencies

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for positions ``[tokens]``: each ``[tokens, 1, head_dim]`` in the model's
        dtype. The first half of sin is negated, so that :func:`rotate` needs no negation."""
        frequencies = self.inverse_frequencies.to(positions.device)
        angles = positions.float()[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        cos = torch.cat((cos, cos), -1).to(self._dtype)
        sin = torch.cat((-sin, sin), -1).to(self._dtype)
        return cos[:, None], sin[:, None]


def rotate_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates ``[tokens, heads, head_dim]`` in place, with tables of :class:`RotaryEmbedding`."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1).mul_(sin)
    heads.mul_(cos).add_(swapped)
