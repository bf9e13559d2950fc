# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernel that writes keys and values, into an FP8 cache: bit for bit what torch stores."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slipstream.attention.kv_scale import FP8, to_fp8
from slipstream.kernels.qkv import prepare_qkv
from slipstream.layers.rotary import RopeSpec, RotaryEmbedding, rotate_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, KV_HEADS, PER_BLOCK = 5, 3, 8
SLOTS = (17, -1, 39, 0)
# Saturated, not a number, subnormal, nothing, and halfway between two e4m3 values.
ODD = [1e6, -1e6, 448.0, 463.0, -480.0, float("inf"), float("-inf"), float("nan"), 0.0, -0.0]
ODD += [2.0**-9, 2.0**-10, 3 * 2.0**-10, 2.0**-11, 17.0, 19.0, 1.0625, 1.1875, -25.0]


def stored(qkv: torch.Tensor, scales: tuple[float, float], **options: object) -> torch.Tensor:
    """The bits of a pool, all ones before, once the kernel has written to it."""
    tokens, _, size = qkv.shape
    bits = torch.full((5, 2, KV_HEADS, PER_BLOCK, size), 255, dtype=torch.uint8, device=DEVICE)
    slots = torch.tensor(SLOTS[:tokens], device=DEVICE)
    prepare_qkv(
        qkv, bits.view(FP8), slots, kv_heads=KV_HEADS,
        key_scale=scales[0], value_scale=scales[1], **options,
    )  # fmt: skip
    return bits


def expected_bits(kv: torch.Tensor, scales: tuple[float, float]) -> torch.Tensor:
    """kv: ``[tokens, 2 * kv_heads, size]``, as it is before it is stored."""
    tokens, _, size = kv.shape
    scale = torch.tensor(scales, device=DEVICE).repeat_interleave(KV_HEADS)[:, None]
    quantized = to_fp8(kv, scale).view(torch.uint8).view(tokens, 2, KV_HEADS, size)
    bits = torch.full((5, 2, KV_HEADS, PER_BLOCK, size), 255, dtype=torch.uint8, device=DEVICE)
    for token, slot in enumerate(SLOTS):
        if slot >= 0:
            bits[slot // PER_BLOCK, :, :, slot % PER_BLOCK] = quantized[token]
    return bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.0173, 3.7)])
@pytest.mark.parametrize("size", [64, 80])
def test_values_are_divided_saturated_and_rounded_to_even(
    dtype: torch.dtype, scales: tuple[float, float], size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = 30 * torch.randn(len(SLOTS), HEADS + 2 * KV_HEADS, size, generator=generator)
    qkv[:, HEADS:, : len(ODD)] = torch.tensor(ODD)
    qkv = qkv.to(dtype).to(DEVICE)
    bits = stored(qkv.clone(), scales)
    assert torch.equal(bits, expected_bits(qkv[:, HEADS:], scales))
    written = bits.view(FP8).float()[0, :, :, 0]
    assert (written.abs() == 448).any()
    assert written[..., 7].isnan().all()


def test_keys_are_stored_as_their_rotation_left_them() -> None:
    dtype, scales, size = torch.bfloat16, (0.05, 0.9), 80
    qkv = torch.randn(len(SLOTS), HEADS + 2 * KV_HEADS, size, generator=torch.manual_seed(0))
    qkv = qkv.to(dtype).to(DEVICE)
    embedding = RotaryEmbedding(RopeSpec(1e4, 32, "halves"), dtype)
    cos, sin = embedding.tables(torch.tensor([3, 0, 100, 5], device=DEVICE))
    expected = qkv.clone()
    rotate_(expected[:, : HEADS + KV_HEADS], (cos, sin), "halves")
    bits = stored(qkv, scales, cos=cos, sin=sin)
    wanted = expected_bits(expected[:, HEADS:], scales)
    if DEVICE == "cpu":
        assert torch.equal(bits, wanted)
        return
    # A GPU's compiler joins a product and a sum: keys may move by a rounding of what is added, and
    # then to the next e4m3 value.
    assert torch.equal(bits[:, 1], wanted[:, 1])
    untouched = wanted[:, 0] == 255
    assert torch.equal(bits[:, 0] == 255, untouched)
    values, close = (b[:, 0][~untouched].view(FP8).float() for b in (bits, wanted))
    rounding = 2.0**-8 * qkv.abs().max().item() / scales[0]
    torch.testing.assert_close(values, close, rtol=0.13, atol=rounding)
