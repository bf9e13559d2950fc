# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al., RoFormer)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from slipstream.layers.device import has_kernels
from slipstream.layers.rope_scaling import RopeScaling
from slipstream.layers.rows import angles

RopeStyle = Literal["halves", "interleaved"]
RopeTables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """The leading ``dim`` entries of a head are rotated, in pairs: entry i with entry
    ``i + dim / 2`` (``halves``) or ``2 i`` with ``2 i + 1`` (``interleaved``)."""

    theta: float
    dim: int
    style: RopeStyle = "halves"
    scaling: RopeScaling | None = None


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """Radians a position: float32 ``[dim / 2]`` on the CPU."""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.int64, device="cpu").float() / spec.dim
    base = 1.0 / spec.theta**exponents
    return base if spec.scaling is None else spec.scaling.scale(base, spec.theta)


class RotaryEmbedding(nn.Module):
    """Tables for a batch of positions. ``by_rows``: set if none may depend on the others."""

    inverse_frequencies: torch.Tensor
    by_rows = False

    def __init__(self, spec: RopeSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._style = spec.style
        self._factor = 1.0 if spec.scaling is None else spec.scaling.attention_factor
        # The loader moves parameters off the meta device; this has to be real from the start.
        with torch.device("cpu"):
            self.inverse_frequencies = inverse_frequencies(spec)

    def tables(self, positions: torch.Tensor) -> RopeTables:
        """cos and sin for positions ``[tokens]``: each ``[tokens, 1, dim]`` in the model's dtype.
        The sin of the first of each pair is negated, so that :func:`rotate_` needs no negation."""
        if positions.is_cuda and not self.inverse_frequencies.is_cuda:
            self.inverse_frequencies = self.inverse_frequencies.to(positions.device)
        if has_kernels(positions.device):
            return self._tables_by_kernel(positions)
        frequencies = self.inverse_frequencies
        if self.by_rows:
            cos, sin = angles(positions, frequencies)
        else:
            products = positions.float()[:, None] * frequencies
            cos, sin = products.cos(), products.sin()
        cos, sin = cos * self._factor, sin * self._factor
        pairs = (cos, cos), (-sin, sin)
        if self._style == "halves":
            cos, sin = (torch.cat(pair, -1) for pair in pairs)
        else:
            cos, sin = (torch.stack(pair, -1).flatten(-2) for pair in pairs)
        return cos.to(self._dtype)[:, None], sin.to(self._dtype)[:, None]

    def _tables_by_kernel(self, positions: torch.Tensor) -> RopeTables:
        from slipstream.kernels.rope import rope_tables

        cos, sin = rope_tables(
            positions, self.inverse_frequencies, self._factor, self._style, self._dtype
        )
        return cos[:, None], sin[:, None]


def rotate_(heads: torch.Tensor, tables: RopeTables, style: RopeStyle) -> None:
    """Rotates the leading entries of ``[tokens, heads, head_dim]`` in place."""
    cos, sin = tables
    dim = cos.shape[-1]
    rotated = heads if dim == heads.shape[-1] else heads[..., :dim]
    if style == "halves":
        swapped = rotated.roll(dim // 2, dims=-1)
    else:
        swapped = rotated.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    swapped.mul_(sin)
    rotated.mul_(cos).add_(swapped)
