# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""MXFP4: blocks of 32 four-bit floats with one shared power of two (OCP Microscaling, v1.0)."""

from __future__ import annotations

import torch

BLOCK = 32  # values that share a scale
_BIAS = 127  # of the e8m0 scale
_NAN = 255

# e2m1: a sign, two bits of exponent, one of mantissa; codes 8 to 15 are the negatives.
_CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """blocks: uint8 ``[..., groups, 16]``, the even value of each pair in the low four bits.
    scales: uint8 ``[..., groups]``, e8m0: 2 to the power of ``scale - 127``, 255 for not a number.

    Returns ``[..., groups * 32]`` in ``dtype``; bfloat16 and float32 hold every value exactly, save
    those beyond their range, which become infinite. Raises ValueError for other shapes or dtypes.
    """
    if blocks.dtype is not torch.uint8 or scales.dtype is not torch.uint8:
        raise ValueError(f"MXFP4 wants uint8, got blocks {blocks.dtype} and scales {scales.dtype}")
    if blocks.shape[-1] != BLOCK // 2 or blocks.shape[:-1] != scales.shape:
        raise ValueError(
            f"MXFP4 blocks {tuple(blocks.shape)} do not fit scales {tuple(scales.shape)}; expected "
            f"the shape of the scales and then {BLOCK // 2}"
        )
    codes = torch.tensor([*_CODES, *(-code for code in _CODES)], device=blocks.device)
    if blocks.ndim <= 3:
        return _dequantize(blocks, scales, codes).to(dtype)
    # One matrix of a stack at a time: float32 temporaries take eight times the stored size.
    out = torch.empty(
        (*scales.shape[:-1], scales.shape[-1] * BLOCK), dtype=dtype, device=blocks.device
    )
    for into, matrix, powers in zip(out, blocks, scales, strict=True):
        into.copy_(dequantize(matrix, powers, dtype))
    return out


def _dequantize(blocks: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1)
    values = torch.ldexp(codes[pairs.int()].flatten(-2), scales.int()[..., None] - _BIAS)
    values.masked_fill_((scales == _NAN)[..., None], float("nan"))
    return values.flatten(-2)
