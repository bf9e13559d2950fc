# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Activation and product of a gated feed-forward block in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")

_BLOCK = 1024  # columns of a program: 16 bytes a thread of a 16-bit dtype


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u)
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        # A comparison, for the maximum of a NaN and 0 would be 0.
        y = tl.where(x < 0.0, 0.0, x)
    return y


@triton.jit
def activated_product(gate, up, ACTIVATION: tl.constexpr):
    """``act(gate) * up`` in their dtype, each of the two steps computed in float32."""
    active = _activate(gate.to(tl.float32), ACTIVATION).to(gate.dtype)
    if ACTIVATION == "relu2":
        active = (active.to(tl.float32) * active.to(tl.float32)).to(gate.dtype)
    return (active.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _gated_activation(
    gate_up,
    out,
    INNER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < INNER
    gate = tl.load(gate_up + row * 2 * INNER + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * INNER + columns, mask=inside, other=0.0)
    product = activated_product(gate, up, ACTIVATION)
    tl.store(out + row * INNER + columns, product, mask=inside)


def gated_activation(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """``act(gate) * up``.

    gate_up: ``[tokens, 2 * inner]``, contiguous, gate first; activation: one of ACTIVATIONS.
    The activation is computed in float32 and rounded before the product. Returns
    ``[tokens, inner]``. Raises ValueError for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, inner)
    if tokens:
        grid = (tokens, triton.cdiv(inner, _BLOCK))
        _gated_activation[grid](
            gate_up, out, inner, activation, _BLOCK, num_warps=4, **launch_options()
        )
    return out
