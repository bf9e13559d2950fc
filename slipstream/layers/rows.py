# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers on a CPU whose result for a token depends on that token alone, down to the last bit.

torch's own products take another path for another number of rows, and its loops over single numbers
another one for those that fill no vector: both round differently. These kernels
(``backend/kernels``) do the same operations in the same order for every row.
"""

from __future__ import annotations

from typing import Any

import torch

from slipstream import _kernels

_DTYPES = {torch.float32: _kernels.Dtype.FLOAT32, torch.bfloat16: _kernels.Dtype.BFLOAT16}
DTYPE_NAMES = ("float32", "bfloat16")


class RowKernels:
    """The kernels and their threads. For use by one thread at a time.

    instructions: ``avx512``, ``avx2`` or ``generic``; the processor's best by default.
    """

    def __init__(self, threads: int, instructions: str = "") -> None:
        self.handle: Any = _kernels.Rows(threads, instructions)

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x @ weight.T + bias``; x: ``[rows, in]``, weight: ``[out, in]``, of one dtype."""
        rows, size = x.shape
        columns = weight.shape[0]
        x = x.contiguous()
        out = x.new_empty(rows, columns) if out is None else out
        assert weight.shape[1] == size
        assert out.shape == (rows, columns)
        assert out.stride(1) == 1 or columns == 1
        assert weight.is_contiguous()
        assert x.dtype == weight.dtype == out.dtype
        self.handle.linear(
            x.data_ptr(),
            weight.data_ptr(),
            address_of(bias, (columns,), x.dtype),
            out.data_ptr(),
            rows,
            size,
            columns,
            out.stride(0) if rows > 1 else columns,
            dtype_of(x),
        )
        return out

    def norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        *,
        subtract_mean: bool,
    ) -> torch.Tensor:
        """x: ``[..., size]``, normalised over the last dimension, times weight plus bias, each
        ``[size]``; a new tensor of the same dtype."""
        size = x.shape[-1]
        rows = x.reshape(-1, size)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        kind = x.dtype if weight is None else weight.dtype
        self.handle.norm(
            rows.data_ptr(),
            rows.stride(0),
            address_of(weight, (size,), kind),
            address_of(bias, (size,), kind),
            out.data_ptr(),
            rows.shape[0],
            size,
            eps,
            subtract_mean,
            dtype_of(x),
            _DTYPES[kind],
        )
        return out

    def gated(
        self, x: torch.Tensor, activation: str, *, alpha: float = 0.0, limit: float = 0.0
    ) -> torch.Tensor:
        """``act(gate) * up`` of ``[rows, 2 * inner]``, gate first: ``[rows, inner]``. alpha, limit:
        of ``clamped_swiglu``, see ExpertsSpec."""
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
        self._activate(x, out, activation, True, alpha, limit)
        return out

    def activate_(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """``act(x)`` of ``[rows, size]``, in place."""
        self._activate(x, x, activation, False)
        return x

    def _activate(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        activation: str,
        gated: bool,
        alpha: float = 0.0,
        limit: float = 0.0,
    ) -> None:
        assert x.is_contiguous()
        kind = getattr(_kernels.Activation, activation.upper())
        rows, size = out.shape
        self.handle.activate(
            x.data_ptr(), out.data_ptr(), rows, size, kind, gated, dtype_of(x), alpha, limit
        )

    def soft_cap_(self, x: torch.Tensor, cap: float) -> torch.Tensor:
        """``cap * tanh(x / cap)``, float32, in place."""
        assert x.is_contiguous()
        assert x.dtype == torch.float32
        self.handle.soft_cap(x.data_ptr(), x.numel(), cap)
        return x


def angles(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of their products, float32 ``[positions, frequencies]``."""
    assert positions.dtype == torch.int64
    assert positions.is_contiguous()
    assert frequencies.dtype == torch.float32
    assert frequencies.is_contiguous()
    shape = (positions.numel(), frequencies.numel())
    cos, sin = torch.empty(shape), torch.empty(shape)
    _kernels.angles(
        positions.data_ptr(), frequencies.data_ptr(), cos.data_ptr(), sin.data_ptr(), *shape
    )
    return cos, sin


def log1p_(x: torch.Tensor) -> torch.Tensor:
    """``log(1 + x)``, float32, in place."""
    assert x.is_contiguous()
    assert x.dtype == torch.float32
    _kernels.log1p(x.data_ptr(), x.numel())
    return x


def dtype_of(x: torch.Tensor) -> Any:
    """The kernels' name of a tensor's dtype; the tensor is on the CPU."""
    assert x.device.type == "cpu"
    return _DTYPES[x.dtype]


def address_of(values: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Where values of that shape are; 0 for None."""
    if values is None:
        return 0
    assert values.shape == shape
    assert values.dtype == dtype
    assert values.is_contiguous()
    return values.data_ptr()
