# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers by rows: as exact as torch's; a row's bits are its own, on each set of instructions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rows_testing import EXACT, assert_rows_are_their_own, rows_of
from torch.nn import functional as F

from slipstream.layers.mlp import Activation, MlpSpec, PlainMlp
from slipstream.layers.norm import add_scaled_
from slipstream.layers.rows import RowKernels, angles, log1p_

SIZES = [1, 5, 16, 40, 64, 101, 256]  # with and without what fills no sixteen lanes


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("columns", [1, 3, 37, 300])
@pytest.mark.parametrize("size", SIZES)
def test_products(kernels: RowKernels, size: int, columns: int, dtype: torch.dtype) -> None:
    x, weight, bias = rows_of(70, size, dtype), rows_of(columns, size, dtype, 1), None
    if columns != 3:
        bias = rows_of(1, columns, dtype, 2)[0]
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    length = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1) + exact.abs()
    error = (kernels.linear(x, weight, bias).double() - exact).abs() / length
    assert error.max() < EXACT[dtype]
    assert_rows_are_their_own(lambda rows: kernels.linear(rows, weight, bias), x)


def test_threads_change_no_product(kernels: RowKernels) -> None:
    x, weight = rows_of(300, 96, torch.float32), rows_of(500, 96, torch.float32, 1)
    one = RowKernels(1, kernels.handle.instructions).linear(x, weight)
    for threads in (2, 3, 7):
        assert torch.equal(RowKernels(threads, kernels.handle.instructions).linear(x, weight), one)


def test_products_into_a_slice(kernels: RowKernels) -> None:
    x, weight = rows_of(5, 40, torch.float32), rows_of(21, 40, torch.float32, 1)
    wide = torch.full((5, 30), 7.0)
    kernels.linear(x, weight, out=wide[:, :21])
    assert torch.equal(wide[:, :21], kernels.linear(x, weight))
    assert (wide[:, 21:] == 7.0).all()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_norms(kernels: RowKernels, size: int, layer: bool, dtype: torch.dtype) -> None:
    x, weight = rows_of(70, size, dtype) + 0.5, rows_of(1, size, dtype, 1)[0]
    bias = rows_of(1, size, dtype, 2)[0] if layer else None

    def norm(rows: torch.Tensor) -> torch.Tensor:
        return kernels.norm(rows, weight, bias, 1e-3, subtract_mean=layer)

    if bias is not None:
        exact = F.layer_norm(x.double(), (size,), weight.double(), bias.double(), 1e-3)
    else:
        exact = F.rms_norm(x.double(), (size,), weight.double(), 1e-3)
    torch.testing.assert_close(norm(x).double(), exact, atol=2e-6, rtol=EXACT[dtype])
    assert_rows_are_their_own(norm, x)


def test_norms_of_heads_that_lie_apart(kernels: RowKernels) -> None:
    """As queries do within the product that queries, keys and values come from."""
    whole = rows_of(12, 6 * 24, torch.float32).view(12, 6, 24)
    heads = kernels.norm(whole[:, :4], None, None, 1e-5, subtract_mean=False)
    apart = kernels.norm(whole[:, :4].clone(), None, None, 1e-5, subtract_mean=False)
    assert torch.equal(heads, apart)
    flat = kernels.norm(whole[:, :4].flatten(1), None, None, 1e-5, subtract_mean=False)
    torch.testing.assert_close(flat, F.rms_norm(whole[:, :4].flatten(1), (96,), None, 1e-5))


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(kernels: RowKernels, name: str, dtype: torch.dtype) -> None:
    x = rows_of(20, 2 * 53, dtype) * 6
    x[0, :6] = torch.tensor([0.0, 90.0, -90.0, 300.0, -300.0, 1e-3]).to(dtype)
    act = ACTIVATIONS[name]
    gate, up = x.double().chunk(2, -1)
    tight = {"atol": 4e-6, "rtol": EXACT[dtype]}
    plain = kernels.activate_(x.clone(), name)
    torch.testing.assert_close(plain.double(), act(x.double()), **tight)
    torch.testing.assert_close(kernels.gated(x, name).double(), act(gate) * up, **tight)
    assert_rows_are_their_own(lambda rows: kernels.activate_(rows, name), x)
    assert_rows_are_their_own(lambda rows: kernels.gated(rows, name), x)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("inner", [1, 16, 53])
def test_clamped_activations(kernels: RowKernels, inner: int, dtype: torch.dtype) -> None:
    x = rows_of(20, 2 * inner, dtype) * 4
    x[0, 0], x[1, inner], x[2, inner] = 300.0, 300.0, -300.0

    def clamped(rows: torch.Tensor) -> torch.Tensor:
        return kernels.gated(rows, "clamped_swiglu", alpha=1.3, limit=2.5)

    gate, up = x.double().chunk(2, -1)
    gate, up = gate.clamp(max=2.5), up.clamp(-2.5, 2.5)
    exact = gate * torch.sigmoid(1.3 * gate) * (up + 1)
    torch.testing.assert_close(clamped(x).double(), exact, atol=4e-6, rtol=EXACT[dtype])
    assert_rows_are_their_own(clamped, x)
    x[7, 0] = x[8, inner] = float("nan")
    assert clamped(x).isnan().nonzero().tolist() == [[7, 0], [8, 0]]


def test_soft_caps(kernels: RowKernels) -> None:
    x = rows_of(20, 101, torch.float32) * 40
    exact = 30 * torch.tanh(x.double() / 30)
    capped = kernels.soft_cap_(x.clone(), 30.0)
    torch.testing.assert_close(capped.double(), exact, atol=1e-5, rtol=0)
    assert_rows_are_their_own(lambda rows: kernels.soft_cap_(rows, 30.0), x)


def test_what_is_not_a_number_stays_so(kernels: RowKernels) -> None:
    """A broken row must be found at the end, and must not break others."""
    x = rows_of(20, 48, torch.float32)
    x[7, 5] = float("nan")
    weight = rows_of(48, 48, torch.float32, 1)
    results = [
        kernels.linear(x, weight),
        kernels.norm(x, None, None, 1e-5, subtract_mean=True),
        *(kernels.activate_(x.clone(), name) for name in ACTIVATIONS),
        kernels.soft_cap_(x.clone(), 3.0),
    ]
    for result in results:
        assert torch.isnan(result[7]).any()
        assert torch.isfinite(result[[*range(7), *range(8, 20)]]).all()


def test_angles() -> None:
    positions = torch.tensor([0, 1, 77, 2047, 131071])
    frequencies = 1.0 / 10000 ** (torch.arange(0, 31) / 31.0)
    cos, sin = angles(positions, frequencies)
    exact = (positions.float()[:, None] * frequencies).double()
    torch.testing.assert_close(cos.double(), exact.cos(), atol=1e-7, rtol=0)
    torch.testing.assert_close(sin.double(), exact.sin(), atol=1e-7, rtol=0)
    assert torch.equal(angles(positions[2:3], frequencies)[0][0], cos[2])


def test_logarithms() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 77.0, 1e6, 3e38])
    exact = x.double().log1p()
    assert log1p_(x) is x
    torch.testing.assert_close(x.double(), exact, atol=0, rtol=1e-7)
    assert torch.equal(log1p_(torch.full((37,), 3.0)), log1p_(torch.tensor([3.0])).expand(37))


def test_scaled_sums_are_rounded_alike_everywhere() -> None:
    """With bfloat16 in rows that fill no vectors, torch's own sums are not."""
    x, branch = rows_of(64, 127, torch.bfloat16), rows_of(64, 127, torch.bfloat16, 1)

    def joined(rows: slice) -> torch.Tensor:
        out = x[rows].clone()
        add_scaled_(out, branch[rows].clone(), 0.22, apart=True)
        return out

    lone = torch.cat([joined(slice(i, i + 1)) for i in range(64)])
    assert torch.equal(joined(slice(0, 64)), lone)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_plain_block_of_an_odd_size(activation: Activation) -> None:
    """Its activation runs over all rows in one go: torch's rounds by the place in it."""
    torch.manual_seed(2)
    block = PlainMlp(32, MlpSpec(127, activation, gated=False), torch.float32)
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    x = rows_of(64, 32, torch.float32)
    block.up.rows = block.down.rows = RowKernels(1)
    with torch.inference_mode():
        assert_rows_are_their_own(block, x)


def test_instructions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match='instructions: this processor cannot run "avx3"'):
        RowKernels(1, "avx3")
