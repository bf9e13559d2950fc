# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the rotary position embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options


@triton.jit
def _rope_tables(
    positions,
    frequencies,
    cos,
    sin,
    factor,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    inside = pair < PAIRS
    position = tl.load(positions + token).to(tl.float32)
    angles = position * tl.load(frequencies + pair, mask=inside, other=0.0)
    # Triton compiles these to libdevice's, which reduce an angle of any size exactly.
    cosines = (tl.cos(angles) * factor).to(cos.dtype.element_ty)
    sines = tl.sin(angles) * factor
    first = token * 2 * PAIRS + (pair * 2 if INTERLEAVED else pair)
    second = first + (1 if INTERLEAVED else PAIRS)
    tl.store(cos + first, cosines, mask=inside)
    tl.store(cos + second, cosines, mask=inside)
    tl.store(sin + first, (-sines).to(sin.dtype.element_ty), mask=inside)
    tl.store(sin + second, sines.to(sin.dtype.element_ty), mask=inside)


def rope_tables(
    positions: torch.Tensor,
    inverse_frequencies: torch.Tensor,
    factor: float,
    style: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each ``[tokens, dim]`` in ``dtype``, laid out as by ``RotaryEmbedding.tables``.

    positions: integers ``[tokens]``; inverse_frequencies: float32 ``[dim / 2]``, radians a
    position; style: ``halves`` or ``interleaved``. Angles are float32. The sin of the first of each
    pair is negated.
    """
    tokens, pairs = positions.shape[0], inverse_frequencies.shape[0]
    tables = torch.empty(2, tokens, 2 * pairs, dtype=dtype, device=positions.device)
    cos, sin = tables.unbind()
    if tokens:
        block = triton.next_power_of_2(pairs)
        interleaved = style == "interleaved"
        _rope_tables[(tokens,)](
            positions,
            inverse_frequencies,
            cos,
            sin,
            factor,
            pairs,
            interleaved,
            block,
            num_warps=1,
            **launch_options(),
        )
    return cos, sin
