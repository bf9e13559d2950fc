# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The product for a few rows against torch's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slipstream.kernels.activation import gated_activation
from slipstream.kernels.skinny_linear import SkinnyConfig, candidates, skinny_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [(1, 200, 1024), (1, 40, 5000), (5, 128, 1000), (16, 64, 2048), (50, 256, 512)],
)
@pytest.mark.parametrize("small", [False, True])
def test_skinny_linear(dtype: torch.dtype, rows: int, n: int, k: int, small: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, k, generator=generator).to(dtype).to(DEVICE)
    w = torch.randn(n, k, generator=generator).to(dtype).to(DEVICE)
    arrivals = torch.zeros(64, dtype=torch.int32, device=DEVICE)
    expected = (x.float() @ w.float().T).to(dtype)
    configs = [SkinnyConfig(16, 32, 3, 4, 3)] if small else candidates(rows, w)[:: 4 - rows % 3]
    for config in configs:
        out = skinny_linear(x, w, arrivals, config)
        torch.testing.assert_close(out, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
        assert not arrivals.any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize(("rows", "inner", "k"), [(1, 101, 1024), (3, 90, 512), (20, 128, 256)])
def test_gates_and_ups_are_multiplied_as_after_a_product(
    activation: str, rows: int, inner: int, k: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, k, generator=generator).to(torch.bfloat16).to(DEVICE)
    w = torch.randn(2 * inner, k, generator=generator).to(torch.bfloat16).to(DEVICE)
    arrivals = torch.zeros(64, dtype=torch.int32, device=DEVICE)
    for config in candidates(rows, w)[:: 5 - rows % 3]:
        product = skinny_linear(x, w, arrivals, config)
        out = skinny_linear(x, w, arrivals, config, activation=activation)
        assert torch.equal(out, gated_activation(product, activation))
        assert not arrivals.any()
    with pytest.raises(ValueError, match="'tanh' is none of"):
        skinny_linear(x, w, arrivals, config, activation="tanh")


def test_candidates_suit_the_shape() -> None:
    def of(rows: int, k: int) -> list[SkinnyConfig]:
        return candidates(rows, torch.empty(256, k, device="meta"))

    assert all(config.kernel == "tiles" for config in of(2, 4096))
    assert not all(config.kernel == "tiles" for config in of(1, 4096))
    assert all(config.block_k * config.splits <= 512 for config in of(16, 512))
    assert all(config.block_n > 1 for config in of(1, 4096)), "gates and ups are paired"
