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
    counts: torch.Tensor  # [num_experts] int64 rows of each expert
    top_k: int

    @classmethod
    def of(cls, experts: torch.Tensor, num_experts: int) -> Dispatch:
        """experts: int64 ``[tokens, top_k]``."""
        pairs = experts.flatten()
        ordered, order = pairs.sort(stable=True)
        # Not bincount: it waits for a GPU to learn the size of its result.
        counts = pairs.new_zeros(num_experts).scatter_add_(0, pairs, torch.ones_like(pairs))
        return cls(order, ordered, counts, experts.shape[-1])

    @property
    def tokens(self) -> torch.Tensor:
        """The token of each row."""
        return self.order.div(self.top_k, rounding_mode="floor")

    def segments(self) -> list[tuple[int, int, int]]:
        """Expert, first row and end of each segment that has rows. Waits for the device."""
        hit = self.counts.nonzero().flatten()
        ends = self.counts[hit].cumsum(0).tolist()
        return list(zip(hit.tolist(), [0, *ends[:-1]], ends, strict=True))


class Experts(nn.Module):
    """Gated blocks with their matrices stacked, gate rows before up rows."""

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
        row_bytes = x.shape[-1] * x.itemsize
        if x.is_cpu and dispatch.order.numel() * row_bytes >= _CACHED_BYTES:
            return self._one_by_one(x, dispatch, weights)
        rows = x[dispatch.tokens]
        if self.spec.weigh_input:
            rows = rows * weights.flatten()[dispatch.order, None]
        multiply = _Segments(dispatch, self.gate_up, self.down)
        inner = multiply(rows, self.gate_up)
        if self.gate_up_bias is not None:
            inner += self.gate_up_bias[dispatch.experts]
        out = multiply(self._activate(inner), self.down)
        if self.down_bias is not None:
            out += self.down_bias[dispatch.experts]
        return self._combine(out, dispatch, weights)

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

    def _combine(
        self, out: torch.Tensor, dispatch: Dispatch, weights: torch.Tensor
    ) -> torch.Tensor:
        # Back to token order, then one small product a token: unlike adding rows in place, the
        # order of summation is fixed, so that results repeat.
        per_token = torch.empty_like(out)
        per_token[dispatch.order] = out
        per_token = per_token.unflatten(0, (-1, dispatch.top_k))
        if self.spec.weigh_input:
            return per_token.sum(1)
        return torch.bmm(weights[:, None], per_token).squeeze(1)


class _Segments:
    """Multiplies each segment of rows with its expert's matrix.

    On a GPU by torch's grouped product, which reads the segments on the device; it wants bfloat16's
    capability and rows of whole 16 bytes. On a CPU that product is the same loop over segments.
    """

    def __init__(self, dispatch: Dispatch, *matrices: torch.Tensor) -> None:
        grouped = dispatch.counts.is_cuda and _groupable(matrices)
        self._offsets = dispatch.counts.cumsum(0, dtype=torch.int32) if grouped else None
        self._segments = [] if grouped else dispatch.segments()

    def __call__(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """rows: ``[pairs, in]``; matrices: ``[num_experts, out, in]``. Returns ``[pairs, out]``."""
        if self._offsets is not None:
            return F.grouped_mm(rows, matrices.transpose(-2, -1), offs=self._offsets)
        out = rows.new_empty((rows.shape[0], matrices.shape[1]))
        for expert, start, end in self._segments:
            torch.mm(rows[start:end], matrices[expert].t(), out=out[start:end])
        return out


def _groupable(matrices: tuple[torch.Tensor, ...]) -> bool:
    aligned = all(matrix.shape[-1] * matrix.dtype.itemsize % 16 == 0 for matrix in matrices)
    return aligned and torch.cuda.get_device_capability(matrices[0].device) >= (8, 0)
