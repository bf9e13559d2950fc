# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Products of few rows that stream weights: where, how cut, and, on the GPUs for it, how right."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton.experimental.gluon")

from slipstream.kernels import stream_linear as module
from slipstream.kernels.skinny_linear import SkinnyConfig, candidates, skinny_linear, streams
from slipstream.kernels.stream_linear import (
    Divisor,
    joined_linear,
    padded_rows,
    stream_linear,
    streamed_candidates,
)

GPU = torch.device("cuda", 0)
hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Of the GPU that there seems to be, in a list to change it in."""
    found = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: found[0])
    streams.cache_clear()
    yield found
    streams.cache_clear()


@pytest.mark.parametrize(
    ("of_gpu", "able"), [((9, 0), True), ((8, 0), False), ((8, 9), False), ((10, 0), False)]
)
def test_only_hopper_streams(
    capability: list[tuple[int, int]], of_gpu: tuple[int, int], able: bool
) -> None:
    capability[0] = of_gpu
    assert streams(GPU) is able
    assert not streams(torch.device("cpu"))


@pytest.mark.usefixtures("capability")
def test_a_compiler_without_the_language_does_not_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "slipstream.kernels.stream_linear")
    monkeypatch.setitem(sys.modules, "triton.experimental", None)
    assert not streams(GPU)


@pytest.mark.usefixtures("capability")
def test_a_compiler_with_another_language_does_not_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.experimental.gluon.language.nvidia import hopper

    monkeypatch.delitem(sys.modules, "slipstream.kernels.stream_linear")
    monkeypatch.delattr(hopper, "warpgroup_mma_wait")
    assert not streams(GPU)


def cuts(rows: int, n: int, k: int, activation: str | None = None) -> list[str]:
    return [
        f"{c.block_n}x{c.block_k}/{c.splits} warps {c.warps} stages {c.stages}"
        for c in streamed_candidates(rows, n, k, activation, 132)
    ]


def test_the_cut_keeps_the_multiprocessors_busy() -> None:
    assert cuts(16, 4096, 14336) == [
        "64x256/2 warps 4 stages 5",
        "128x128/4 warps 4 stages 6",
    ]
    assert cuts(16, 6144, 4096)[0] == "64x256/1 warps 4 stages 5", "96 programs, not 192"
    assert cuts(32, 28672, 4096, "silu") == [
        "128x128/1 warps 4 stages 5",
        "256x64/1 warps 4 stages 6",
    ]
    assert "256x64/1 warps 8 stages 5" in cuts(64, 28672, 4096, "silu")
    assert cuts(16, 1024, 2048)[0] == "64x256/8 warps 4 stages 1", "no more than there is to fetch"
    assert cuts(128, 28672, 4096, "silu") == ["128x128/1 warps 4 stages 3"]
    assert cuts(1, 128, 1024) == [], "a handful of programs would not be faster"


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("n", [64, 1000, 4096, 28672, 151936])
@pytest.mark.parametrize("k", [64, 1000, 4096, 14336])
def test_every_candidate_suits(
    monkeypatch: pytest.MonkeyPatch, activation: str | None, n: int, k: int
) -> None:
    class Launched(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Launched

    monkeypatch.setattr(module, "_descriptor", refuse)
    processors = type("Properties", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    w = torch.empty(n, k, dtype=torch.bfloat16, device="meta")
    for rows in (1, 16, 32, 64, 128):
        for config in streamed_candidates(rows, n, k, activation, 132):
            for fewer in {rows, rows // 2 + 1}:
                x = torch.empty(fewer, k, dtype=torch.bfloat16, device="meta")
                with pytest.raises(Launched):
                    stream_linear(x, w, w, config, activation=activation)


@pytest.mark.parametrize(
    ("config", "rows", "k", "activation"),
    [
        (SkinnyConfig(64, 256, 1, 4, 1, "stream"), 129, 4096, None),  # too many rows
        (SkinnyConfig(64, 256, 1, 4, 7, "stream"), 8, 4096, None),  # more than an SM has
        (SkinnyConfig(64, 256, 1, 4, 6, "stream"), 64, 4096, None),  # with as many rows
        (SkinnyConfig(64, 256, 1, 4, 6, "stream"), 8, 4096, "silu"),  # half of it gates
        (SkinnyConfig(64, 256, 1, 8, 3, "stream"), 8, 4096, None),
        (SkinnyConfig(256, 64, 1, 4, 2, "stream"), 128, 4096, None),  # more sums than registers
        (SkinnyConfig(64, 256, 1, 2, 3, "stream"), 8, 4096, None),
        (SkinnyConfig(96, 64, 1, 4, 3, "stream"), 8, 4096, None),
        (SkinnyConfig(64, 32, 1, 4, 3, "stream"), 8, 4096, None),
        (SkinnyConfig(64, 256, 5, 4, 3, "stream"), 8, 1024, None),  # some would have no part
        (SkinnyConfig(64, 256, 0, 4, 3, "stream"), 8, 1024, None),
        (SkinnyConfig(64, 256, 1, 4, 0, "stream"), 8, 1024, None),
        (SkinnyConfig(64, 256, 1, 4, 3, "stream"), 8, 1028, None),  # rows of odd addresses
    ],
)
def test_a_config_that_does_not_suit_is_refused(
    config: SkinnyConfig, rows: int, k: int, activation: str | None
) -> None:
    x, w = torch.empty(rows, k, dtype=torch.bfloat16), torch.empty(512, k, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="does not suit"):
        skinny_linear(x, w, torch.zeros(8, dtype=torch.int32), config, activation=activation)


@pytest.mark.usefixtures("capability")
def test_candidates_of_both_kinds_where_weights_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
    everywhere = candidates(32, w)
    monkeypatch.setattr("slipstream.kernels.skinny_linear.streams", lambda device: True)
    processors = type("Properties", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)
    here = candidates(32, w)
    assert {config.kernel for config in everywhere} == {"tiles"}
    assert {config.kernel for config in here} == {"stream", "tiles"}
    assert len(here) <= len(everywhere)
    assert {config.kernel for config in candidates(1, w)} == {"stream", "vector", "tiles"}
    assert {config.kernel for config in candidates(128, w)} == {"stream"}


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "k", "activation"),
    [
        (4100, 1096, None),  # tiles reach past the ends
        (1030, 8192, None),  # K is split
        (40000, 520, None),  # several tiles a program
        (4100, 1096, "silu"),
        (12000, 1000, "relu2"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 20, 33, 64, 65, 128])
def test_streamed_products(
    dtype: torch.dtype, n: int, k: int, activation: str | None, rows: int
) -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(rows, k, generator=generator, device=GPU).to(dtype)
    w = torch.randn(n, k, generator=generator, device=GPU).mul_(k**-0.5).to(dtype)
    product = x.double() @ w.double().T
    if activation is not None:
        gate, up = product.chunk(2, 1)
        product = (F.silu(gate) if activation == "silu" else F.relu(gate).square()) * up
    arrivals = torch.zeros(n, dtype=torch.int32, device=GPU)
    processors = torch.cuda.get_device_properties(GPU).multi_processor_count
    configs = streamed_candidates(rows, n, k, activation, processors)
    assert configs
    for config in configs:
        outs = torch.full((10, rows + 1, product.shape[1]), torch.nan, dtype=dtype, device=GPU)
        for out in outs:  # each begins while the one before ends
            skinny_linear(x, w, arrivals, config, out[:rows], activation=activation)
        error = (outs[0, :rows].double() - product).norm() / product.norm()
        assert error < 4 * torch.finfo(dtype).eps, config
        assert torch.equal(outs[1:, :rows], outs[:1, :rows].expand(9, -1, -1)), config
        assert outs[:, rows].isnan().all(), "written past the last row"
        assert not arrivals.any(), config


def cut_in_ways(rows: int, n: int, k: int, activation: str | None = None) -> list[SkinnyConfig]:
    """Candidates here and of a smaller GPU: split, unsplit, and several tiles a program."""
    here = torch.cuda.get_device_properties(GPU).multi_processor_count
    found = [streamed_candidates(rows, n, k, activation, count) for count in (here, 16)]
    assert found[0] or found[1]
    return list(dict.fromkeys(sum(found, [])))


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("n", "k"),
    [
        (1000, 1096),  # of nothing a multiple, unsplit and split
        (4096, 4096),  # split
        (8192, 1024),  # unsplit
        (40000, 520),  # several tiles a program
    ],
)
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 20, 33, 64])
def test_products_that_join_a_residual(
    weight_dtype: torch.dtype, n: int, k: int, rows: int
) -> None:
    generator = torch.Generator(GPU).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=GPU)

    x, w = random(rows, k).bfloat16(), random(n, k).mul_(k**-0.5).bfloat16()
    before, weight = random(rows + 1, n).mul_(3).bfloat16(), random(n).to(weight_dtype)
    arrivals = torch.zeros(n, dtype=torch.int32, device=GPU)
    sums = (x.double() @ w.double().T).bfloat16()
    exact = before[:rows].double() + sums.double() * 0.5
    for config in cut_in_ways(rows, n, k):
        results = []
        for hidden in before.repeat(10, 1, 1):  # each begins while the one before ends
            values, divisor = joined_linear(
                x, w, arrivals, config, hidden[:rows], weight, scale=0.5, eps=1e-5
            )
            results.append((hidden, values, divisor.squares))
        hidden, values, squares = results[0]
        assert (hidden[:rows].double() - exact).norm() < 0.004 * exact.norm(), config
        assert torch.equal(hidden[rows], before[rows]), "written past the last row"
        now = hidden[:rows].float()
        assert torch.equal(values, (now * weight.float()).bfloat16()), config
        assert squares.shape == (-(-n // config.block_n), padded_rows(rows))
        for tile, columns in enumerate(now.split(config.block_n, 1)):
            of_tile = columns.square().sum(1)
            torch.testing.assert_close(squares[tile, :rows], of_tile, rtol=1e-5, atol=0)
        for again in results[1:]:
            assert all(map(torch.equal, again, results[0])), config
        assert not arrivals.any(), config


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize(
    ("n", "k", "activation"),
    [
        (1000, 1096, None),
        (4096, 8192, None),  # split
        (40000, 520, None),  # several tiles a program
        (2000, 1096, "relu2"),
        (28672, 4096, "silu"),
    ],
)
@pytest.mark.parametrize("wide", [64, 128])
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 20, 33, 64])
def test_products_of_rows_to_be_divided(
    n: int, k: int, activation: str | None, wide: int, rows: int
) -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    hidden = torch.randn(rows, k, generator=generator, device=GPU).mul_(3)
    hidden *= torch.logspace(-1, 1, rows, device=GPU)[:, None]  # rows that differ in size
    w = torch.randn(n, k, generator=generator, device=GPU).mul_(k**-0.5).bfloat16()
    squares = torch.zeros(-(-k // wide), padded_rows(rows), device=GPU)
    for tile, columns in enumerate(hidden.split(wide, 1)):
        squares[tile, :rows] = columns.square().sum(1)
    x, divisor = hidden.bfloat16(), Divisor(squares, 0.01)
    product = x.double() @ w.double().T
    product *= (hidden.double().square().mean(1, keepdim=True) + 0.01).rsqrt()
    if activation is not None:
        gate, up = product.chunk(2, 1)
        product = (F.silu(gate) if activation == "silu" else F.relu(gate).square()) * up
    arrivals = torch.zeros(n, dtype=torch.int32, device=GPU)
    for config in cut_in_ways(rows, n, k, activation):
        outs = torch.full((10, rows + 1, product.shape[1]), torch.nan, device=GPU).bfloat16()
        for out in outs:
            stream_linear(
                x, w, arrivals, config, out[:rows], activation=activation, divisor=divisor
            )
        error = (outs[0, :rows].double() - product).norm(dim=1) / product.norm(dim=1)
        assert error.max() < 4 * torch.finfo(torch.bfloat16).eps, config
        assert torch.equal(outs[1:, :rows], outs[:1, :rows].expand(9, -1, -1)), config
        assert outs[:, rows].isnan().all(), "written past the last row"
        assert not arrivals.any(), config


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("rows", [2, 16, 64])
def test_a_norm_between_two_products(rows: int) -> None:
    """Again and again in a row, as in a model, each beginning while the one before ends."""
    generator = torch.Generator(GPU).manual_seed(0)
    size, inner = 4096, 8192
    down = torch.randn(size, inner // 2, generator=generator, device=GPU).mul_(0.01).bfloat16()
    up = torch.randn(inner, size, generator=generator, device=GPU).mul_(0.02).bfloat16()
    weight = torch.rand(size, generator=generator, device=GPU).bfloat16()
    first = torch.randn(rows, inner // 2, generator=generator, device=GPU).bfloat16()
    arrivals = torch.zeros(inner, dtype=torch.int32, device=GPU)

    hidden = torch.zeros(rows, size, dtype=torch.bfloat16, device=GPU)
    expected, given = hidden.clone(), first
    for _ in range(20):
        delta = F.linear(given, down)
        expected = expected + delta
        normed = F.rms_norm(expected.float(), (size,), weight.float(), 1e-5).bfloat16()
        gate, ups = F.linear(normed, up).chunk(2, 1)
        given = F.silu(gate) * ups

    downs, gates = cut_in_ways(rows, size, inner // 2), cut_in_ways(rows, inner, size, "silu")
    for turn in range(max(len(downs), len(gates))):
        of_down, of_up = downs[turn % len(downs)], gates[turn % len(gates)]
        hidden.zero_()
        given = first
        for _ in range(20):
            values, divisor = joined_linear(
                given, down, arrivals, of_down, hidden, weight, scale=1.0, eps=1e-5
            )
            given = stream_linear(values, up, arrivals, of_up, activation="silu", divisor=divisor)
        assert (hidden - expected).float().norm() < 0.05 * expected.float().norm()
        assert not arrivals.any()
