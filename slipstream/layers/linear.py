# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose products of a few rows run on whichever kernel was measured to be fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.layers.norm import Norm
from slipstream.layers.rows import RowKernels

if TYPE_CHECKING:  # its compiler comes with torch for GPUs alone
    from slipstream.kernels.skinny_linear import SkinnyConfig
    from slipstream.kernels.stream_linear import Divisor


_MOST_UNDIVIDED = 64  # rows; with more a norm is as fast in a kernel of its own


@dataclass(slots=True)
class Undivided:
    """Rows ``[rows, size]`` times the weight of an RMS norm, which have yet to be divided by their
    root mean square: the product that takes them does that to its sums."""

    values: torch.Tensor
    divisor: Divisor


@dataclass(slots=True)
class Residual:
    """What a product may join: ``hidden += scale * product``, in place. ``norm``, an RMS norm with
    a weight, comes next, and then a Linear that ``streams`` as many rows."""

    hidden: torch.Tensor
    scale: float
    norm: Norm


class FewRows:
    """Kernels for products of few rows; without one torch's own is the fastest.

    configs: the kernel for up to so many rows, ascending; ``arrivals``: see ``skinny_linear``.
    """

    def __init__(
        self, configs: list[tuple[int, SkinnyConfig | None]], arrivals: torch.Tensor
    ) -> None:
        self.arrivals = arrivals
        self.by_rows: list[SkinnyConfig | None] = [None]
        for most, config in configs:
            self.by_rows += [config] * (most + 1 - len(self.by_rows))

    def config(self, rows: int) -> SkinnyConfig | None:
        return self.by_rows[rows] if rows < len(self.by_rows) else None


class PlainLinear(nn.Linear):
    """``x @ weight.T + bias`` on torch's own product. ``rows``: set if no row may depend on the
    others."""

    rows: RowKernels | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[rows, in]``. Returns ``[rows, out]``."""
        if self.rows is not None:
            return self.rows.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class Linear(PlainLinear):
    """A PlainLinear that may run on kernels. ``few_rows``: set once it is known on which GPU."""

    few_rows: FewRows | None = None

    def forward(self, x: torch.Tensor | Undivided) -> torch.Tensor:
        """x: ``[rows, in]``. Returns ``[rows, out]``."""
        if isinstance(x, Undivided):
            return self._divided_product(x)
        product = self._few_rows_product(x)
        return super().forward(x) if product is None else product

    def into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``forward`` without a bias, into ``out`` ``[rows, out]``."""
        assert self.bias is None
        if self.rows is not None:
            self.rows.linear(x, self.weight, out=out)
        elif self._few_rows_product(x, out) is None:
            torch.mm(x, self.weight.t(), out=out)

    def streams(self, rows: int) -> bool:
        """Whether so many rows may be Undivided, or their product ``joined`` to a residual."""
        config = None if self.few_rows is None else self.few_rows.config(rows)
        return (
            config is not None
            and config.kernel == "stream"
            and rows <= _MOST_UNDIVIDED
            and self.weight.dtype == torch.bfloat16  # float16 may not hold the values
            and self.rows is None
        )

    def joined(self, x: torch.Tensor, residual: Residual) -> torch.Tensor | Undivided:
        """Joins the product to the residual and returns what the norm makes of it, where this layer
        ``streams``; elsewhere ``forward``, which has yet to join it. x: ``[rows, in]``."""
        few, rows = self.few_rows, x.shape[0]
        if few is None or (config := few.config(rows)) is None or not self.streams(rows):
            return self.forward(x)
        from slipstream.kernels.stream_linear import joined_linear

        norm = residual.norm
        assert norm.weight is not None
        values, divisor = joined_linear(
            x, self.weight, few.arrivals, config, residual.hidden, norm.weight,
            scale=residual.scale, eps=norm.eps,
        )  # fmt: skip
        return Undivided(values, divisor)

    def _divided_product(self, x: Undivided, activation: str | None = None) -> torch.Tensor:
        from slipstream.kernels.stream_linear import stream_linear

        few, values = self.few_rows, x.values
        assert few is not None
        config = few.config(values.shape[0])
        assert config is not None
        return stream_linear(
            values, self.weight, few.arrivals, config, activation=activation, divisor=x.divisor
        )

    def _few_rows_product(
        self, x: torch.Tensor, out: torch.Tensor | None = None, activation: str | None = None
    ) -> torch.Tensor | None:
        """The product by a kernel of ours, None where torch's is to be used."""
        if self.few_rows is None or (config := self.few_rows.config(x.shape[0])) is None:
            return None
        from slipstream.kernels.skinny_linear import skinny_linear

        arrivals = self.few_rows.arrivals
        return skinny_linear(x, self.weight, arrivals, config, out, activation=activation)


class GatedLinear(Linear):
    """Gate and up of a feed-forward block in one matrix, gate first, and their product."""

    def __init__(
        self, in_features: int, inner: int, activation: str, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__(in_features, 2 * inner, bias=bias, dtype=dtype)
        self.activation = activation

    def gated_by_kernels(self, x: torch.Tensor | Undivided) -> torch.Tensor:
        """``act(gate) * up`` where ``has_kernels``. x: ``[rows, in]``, result ``[rows, inner]``."""
        if isinstance(x, Undivided):
            return self._divided_product(x, self.activation)
        product = self._few_rows_product(x, activation=self.activation)
        if product is not None:
            return product
        from slipstream.kernels.activation import gated_activation

        return gated_activation(F.linear(x, self.weight, self.bias), self.activation)
