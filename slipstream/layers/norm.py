# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.layers.device import has_kernels
from slipstream.layers.rows import RowKernels


@dataclass(frozen=True, slots=True)
class NormSpec:
    """How a family normalises.

    ``rms``: ``x / sqrt(mean(x^2) + eps) * weight``; ``layer`` subtracts the mean first and adds
    the bias where there is one. ``float32_weight`` keeps the weight in float32 and rounds only the
    product: Gemma multiplies by ``1 + w``, which the model's dtype could not hold.
    """

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    weight: bool = True
    bias: bool = False
    float32_weight: bool = False


class Norm(nn.Module):
    """One normalisation; ``shape`` is the weight's, its last entry the size normalised over.

    A weight of two dimensions ``[heads, head_dim]`` scales every head by its own row. ``rows``: set
    if no row may depend on the others.
    """

    rows: RowKernels | None = None

    def __init__(self, spec: NormSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self._spec = spec
        self._size = shape[-1:]
        self._weight_dtype = torch.float32 if spec.float32_weight else dtype
        self._fused = self.is_rms and len(shape) == 1
        self.weight = _parameter(shape, self._weight_dtype) if spec.weight else None
        self.bias = _parameter(shape, self._weight_dtype) if spec.bias else None

    @property
    def is_rms(self) -> bool:
        """Whether it is a plain root mean square norm, without a bias."""
        return self._spec.kind == "rms" and not self._spec.bias

    @property
    def eps(self) -> float:
        return self._spec.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[..., *shape]``. Returns a new tensor of the same shape and dtype."""
        if self.weight is not None and self.weight.ndim > 1:
            rows = self._normalise(x.float(), None, None) * self.weight
            return (rows if self.bias is None else rows + self.bias).to(x.dtype)
        if self._spec.float32_weight:
            return self._normalise(x.float(), self.weight, self.bias).to(x.dtype)
        return self._normalise(x, self.weight, self.bias)

    def after_adding(
        self, x: torch.Tensor, branch: torch.Tensor | None, scale: float = 1.0
    ) -> torch.Tensor:
        """Adds ``scale * branch`` to x in place, unless it is None; then x normalised."""
        if self._fused and has_kernels(x.device):
            from slipstream.kernels.norm import add_rms_norm

            return add_rms_norm(x, branch, self.weight, self._spec.eps, scale=scale)
        if branch is not None:
            add_scaled_(x, branch, scale, apart=self.rows is not None)
        out: torch.Tensor = self(x)
        return out

    def _normalise(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if self.rows is not None:
            subtract = self._spec.kind == "layer"
            return self.rows.norm(x, weight, bias, self._spec.eps, subtract_mean=subtract)
        if self._spec.kind == "rms":
            return F.rms_norm(x, self._size, weight, self._spec.eps)
        return F.layer_norm(x, self._size, weight, bias, self._spec.eps)


def add_scaled_(x: torch.Tensor, branch: torch.Tensor, scale: float, *, apart: bool) -> None:
    """``x += scale * branch``. apart: the same for every entry, whatever its place in the tensor;
    torch may otherwise round the product in some places and fuse it with the sum in others."""
    if apart and scale != 1.0:
        x.add_(branch * scale)
    else:
        x.add_(branch, alpha=scale)


def _parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype))
