# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Residual addition and RMS normalisation in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options


@triton.jit
def _add_rms_norm(
    x, delta, weight, out, eps, scale, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    if weight is not None:
        factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    await_inputs(PDL)
    row = tl.load(x + start + columns, mask=inside, other=0.0)
    values = row.to(tl.float32)
    if delta is not None:
        added = tl.load(delta + start + columns, mask=inside, other=0.0).to(tl.float32)
        row = (values + added * scale).to(row.dtype)
        values = row.to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / SIZE + eps)
    if weight is not None:
        normed *= factors
    if delta is not None:
        tl.store(x + start + columns, row, mask=inside)
    tl.store(out + start + columns, normed.to(row.dtype), mask=inside)


def add_rms_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    *,
    scale: float = 1.0,
) -> torch.Tensor:
    """Adds ``scale * delta`` to x in place and returns the RMS norm of the sum, times the weight.

    x, delta: ``[tokens, hidden]``, contiguous, of one dtype. weight: ``[hidden]`` in that dtype or
    in float32. The sum is rounded to x's dtype before it is normalised; everything after that is
    float32 and rounded once. Without a delta x stays as it is. Returns a new tensor like x.
    """
    tokens, size = x.shape
    out = torch.empty_like(x)
    if tokens:
        block = triton.next_power_of_2(size)
        warps = min(max(block // 512, 1), 16)
        _add_rms_norm[(tokens,)](
            x, delta, weight, out, eps, scale, size, block, num_warps=warps, **launch_options()
        )
    return out
