# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""MXFP4 tensors mean exactly what the format says."""

from __future__ import annotations

import math

import pytest
import torch

from slipstream.quantization.mxfp4 import dequantize

POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
ALL_CODES = POSITIVE + [-value for value in POSITIVE]


def block(codes: list[int]) -> torch.Tensor:
    """32 codes as stored: ``[1, 16]``, the even one of a pair in the low bits."""
    pairs = zip(codes[::2], codes[1::2], strict=True)
    return torch.tensor([[low | high << 4 for low, high in pairs]], dtype=torch.uint8)


def scale(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-127, -126, -125, -24, -1, 0, 1, 24, 125])
def test_all_codes_times_powers_of_two(dtype, power):
    values = dequantize(block(list(range(16)) * 2), scale(power + 127), dtype)
    assert values.dtype is dtype
    assert values.tolist() == [code * 2.0**power for code in ALL_CODES] * 2
    assert math.copysign(1.0, values[8].item()) == -1.0, "code 8 is negative zero"


def test_the_largest_scales_overflow_to_infinity_and_255_is_not_a_number():
    values = dequantize(block(list(range(16)) * 2), scale(254), torch.float32)[:8].tolist()
    assert values == [0.0, 2.0**126, 2.0**127, 1.5 * 2.0**127, *[math.inf] * 4]
    assert dequantize(block([0] * 32), scale(255), torch.float32).isnan().all()


def test_groups_follow_each_other_in_stacks_of_any_depth():
    low, high = block([2] * 32), block([1, 9] * 16)
    row = torch.cat((low, high))
    expected = [2.0] * 32 + [0.25, -0.25] * 16
    stack = row.expand(3, 5, 2, 16)
    scales = scale(128, 126).expand(3, 5, 2)
    values = dequantize(stack, scales, torch.float32)
    assert values.shape == (3, 5, 64)
    assert (values == torch.tensor(expected)).all()
    assert torch.equal(dequantize(row, scale(128, 126), torch.float32), torch.tensor(expected))


def test_other_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"blocks \(1, 16\) do not fit scales \(2,\)"):
        dequantize(block([0] * 32), scale(1, 2), torch.float32)
    with pytest.raises(ValueError, match=r"blocks \(1, 8\) do not fit scales \(1,\)"):
        dequantize(block([0] * 32)[:, :8], scale(1), torch.float32)
    with pytest.raises(ValueError, match=r"got blocks torch.uint8 and scales torch.float32"):
        dequantize(block([0] * 32), torch.ones(1), torch.float32)
