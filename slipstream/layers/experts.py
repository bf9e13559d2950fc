# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Feed-forward experts, computed for the tokens routed to them and for no others.

Every pair of a token and an expert that it chose is a row; rows are sorted by expert, so that the
rows of one expert are a contiguous segment and one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.layers.expert_rows import combine, multiply
from slipstream.layers.rows import RowKernels

# From this size on, the rows of all experts together leave a CPU's caches between one use and the
# next, and cost more than what one expert at a time repeats.
_CACHED_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Width and activation of every expert of a layer.

    ``swiglu`` is ``silu(gate) * up``. ``clamped_swiglu`` (GPT-OSS) is
    ``gate * sigmoid(alpha * gate) * (up + 1)`` with gate at most ``limit`` and up within
    ``-limit`` and ``limit``. ``weigh_input`` multiplies a token by its weight before the expert
    instead of after it (Llama 4).
    """

    intermediate_size: int
    activation: Literal["swiglu", "clamped_swiglu"] = "swiglu"
    alpha: float = 1.702
    limit: float = 7.0
    bias: bool = False
    weigh_input: bool = False


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Token-expert pairs sorted by expert."""

    order: torch.Tensor  # [pairs] pair of each row, pairs counted token by token
    experts: torch.Tensor  # [pairs] expert of each row, ascending
    counts: torch.Tensor  # [num_experts] rows of each expert
    top_k: int

    @classmethod
    def of(cls, experts: torch.Tensor, num_experts: int) -> Dispatch:
        """experts: int64 ``[tokens, top_k]``."""
        pairs = experts.flatten()
        ordered, order = pairs.sort(stable=True)
        counts = pairs.bincount(minlength=num_experts)
        return cls(order, ordered, counts, experts.shape[-1])

    @property
    def tokens(self) -> torch.Tensor:
        """The token of each row."""
        return self.order.div(self.top_k, rounding_mode="floor")

    def segments(self) -> list[tuple[int, int, int]]:
        """Expert, first row and end of each segment that has rows."""
        hit = self.counts.nonzero().flatten()
        ends = self.counts[hit].cumsum(0).tolist()
        return list(zip(hit.tolist(), [0, *ends[:-1]], ends, strict=True))


class Experts(nn.Module):
    """Gated blocks with their matrices stacked, gate rows before up rows. ``rows``: set if no token
    may depend on the others."""

    rows: RowKernels | None = None

    def __init__(
        self, spec: ExpertsSpec, hidden_size: int, num_experts: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.spec = spec
        inner = spec.intermediate_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_experts, *shape, dtype=dtype))

        self.gate_up = parameter(2 * inner, hidden_size)
        self.down = parameter(hidden_size, inner)
        self.gate_up_bias = parameter(2 * inner) if spec.bias else None
        self.down_bias = parameter(hidden_size) if spec.bias else None

    def forward(self, x: torch.Tensor, dispatch: Dispatch, weights: torch.Tensor) -> torch.Tensor:
        """x: ``[tokens, hidden]``; weights: ``[tokens, top_k]`` in the router's order. Returns the
        weighted sum over each token's experts, ``[tokens, hidden]``."""
        weights = weights.to(x.dtype)
        if self.rows is not None:
            return self._by_rows(self.rows, x, dispatch, weights)
        row_bytes = x.shape[-1] * x.itemsize
        if x.is_cpu and dispatch.order.numel() * row_bytes >= _CACHED_BYTES:
            return self._one_by_one(x, dispatch, weights)
        rows = x[dispatch.tokens]
        if self.spec.weigh_input:
            rows = rows * weights.flatten()[dispatch.order, None]
        segments = dispatch.segments()
        inner = _multiply(rows, self.gate_up, segments)
        if self.gate_up_bias is not None:
            inner += self.gate_up_bias[dispatch.experts]
        out = _multiply(self._activate(inner), self.down, segments)
        if self.down_bias is not None:
            out += self.down_bias[dispatch.experts]
        # Back to token order, then one small product a token: unlike adding rows in place, the
        # order of summation is fixed, so that results repeat.
        per_token = torch.empty_like(out)
        per_token[dispatch.order] = out
        return self._combine(per_token, dispatch.top_k, weights)

    def by_kernels(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        load: torch.Tensor | None,
    ) -> torch.Tensor:
        """As ``forward``, by kernels that read on the device what each expert has to do.

        experts: as the router gives them. load: int64 ``[num_experts]``, which the rows of each
        expert are added to.
        """
        from slipstream.kernels.experts import down_product, gate_up_product, sort_pairs

        top_k = experts.shape[-1]
        weights = weights.to(x.dtype)
        pairs = sort_pairs(experts, self.down.shape[0], load)
        spec = self.spec
        inner = gate_up_product(
            x,
            pairs,
            top_k,
            self.gate_up,
            self.gate_up_bias,
            weights if spec.weigh_input else None,
            clamped=spec.activation == "clamped_swiglu",
            alpha=spec.alpha,
            limit=spec.limit,
        )
        out = down_product(inner, pairs, self.down, self.down_bias)
        return self._combine(out, top_k, weights)

    def _by_rows(
        self, kernels: RowKernels, x: torch.Tensor, dispatch: Dispatch, weights: torch.Tensor
    ) -> torch.Tensor:
        spec, segments = self.spec, dispatch.segments()
        rows = x[dispatch.tokens]
        if spec.weigh_input:
            rows *= weights.flatten()[dispatch.order, None]
        inner = multiply(kernels, rows, self.gate_up, self.gate_up_bias, segments)
        activation = "silu" if spec.activation == "swiglu" else spec.activation
        inner = kernels.gated(inner, activation, alpha=spec.alpha, limit=spec.limit)
        out = multiply(kernels, inner, self.down, self.down_bias, segments)
        places = torch.empty_like(dispatch.order)
        places[dispatch.order] = torch.arange(places.numel())
        places = places.view(weights.shape)
        return combine(kernels, out, places, None if spec.weigh_input else weights.float())

    def _one_by_one(
        self, x: torch.Tensor, dispatch: Dispatch, weights: torch.Tensor
    ) -> torch.Tensor:
        # A token's experts are added in ascending order, each by one addition, so results repeat.
        total = torch.zeros(x.shape, dtype=torch.float32)
        tokens = dispatch.tokens
        weights = weights.flatten()[dispatch.order, None]
        for expert, start, end in dispatch.segments():
            rows = x.index_select(0, tokens[start:end])
            if self.spec.weigh_input:
                rows *= weights[start:end]
            inner = rows @ self.gate_up[expert].t()
            if self.gate_up_bias is not None:
                inner += self.gate_up_bias[expert]
            out = self._activate(inner) @ self.down[expert].t()
            if self.down_bias is not None:
                out += self.down_bias[expert]
            out = out.float()
            if not self.spec.weigh_input:
                out *= weights[start:end]
            total.index_add_(0, tokens[start:end], out)
        return total.to(x.dtype)

    def _activate(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, dim=-1)
        if self.spec.activation == "swiglu":
            return F.silu(gate).mul_(up)
        gate = gate.clamp(max=self.spec.limit)
        up = up.clamp(-self.spec.limit, self.spec.limit)
        return (gate * self.spec.alpha).sigmoid_().mul_(gate).mul_(up.add_(1.0))

    def _combine(self, per_token: torch.Tensor, top_k: int, weights: torch.Tensor) -> torch.Tensor:
        per_token = per_token.unflatten(0, (-1, top_k))
        if self.spec.weigh_input:
            return per_token.sum(1)
        return torch.bmm(weights[:, None], per_token).squeeze(1)


def _multiply(
    rows: torch.Tensor, matrices: torch.Tensor, segments: list[tuple[int, int, int]]
) -> torch.Tensor:
    """rows: ``[pairs, in]``; matrices: ``[num_experts, out, in]``. Returns ``[pairs, out]``: each
    segment of rows times its expert's matrix."""
    out = rows.new_empty((rows.shape[0], matrices.shape[1]))
    for expert, start, end in segments:
        torch.mm(rows[start:end], matrices[expert].t(), out=out[start:end])
    return out
