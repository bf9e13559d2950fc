# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Experts by rows: the choice is the router's, ties are settled, and a row's bits are its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rows_testing import EXACT, assert_rows_are_their_own, rows_of

from slipstream.layers.expert_rows import combine, multiply, route
from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeBlock, MoeSpec
from slipstream.layers.router import RouterSpec, choose
from slipstream.layers.rows import RowKernels

ROUTERS = {
    "softmax": RouterSpec(37, 5),
    "renormalised": RouterSpec(128, 8, renormalise=True),
    "of_the_chosen": RouterSpec(32, 4, score_chosen=True, bias=True),
    "sigmoid_of_the_chosen": RouterSpec(16, 1, "sigmoid", score_chosen=True),
    "all": RouterSpec(5, 5, scale=1.7),
    "groups": RouterSpec(24, 4, num_groups=6, kept_groups=2, scale=2.5),
    "corrected": RouterSpec(
        64, 6, "sigmoid", renormalise=True, num_groups=8, kept_groups=3, group_rank="top2",
        correction=True, exact=True,
    ),
}  # fmt: skip


def correction_of(spec: RouterSpec) -> torch.Tensor | None:
    return rows_of(1, spec.num_experts, torch.float32, 9)[0] * 0.1 if spec.correction else None


@pytest.mark.parametrize("name", ROUTERS)
def test_routes(kernels: RowKernels, name: str) -> None:
    spec = ROUTERS[name]
    logits, correction = rows_of(70, spec.num_experts, torch.float32), correction_of(spec)
    experts, weights = route(kernels, logits, spec, correction)
    theirs, exact = choose(logits.double(), spec, correction)
    assert torch.equal(experts.sort().values, theirs.sort().values)
    place = (experts[:, :, None] == theirs[:, None]).long().argmax(-1)
    torch.testing.assert_close(weights.double(), exact.gather(-1, place), atol=0, rtol=2e-6)
    for part in (0, 1):
        assert_rows_are_their_own(lambda x, p=part: route(kernels, x, spec, correction)[p], logits)


@pytest.mark.parametrize("score_chosen", [False, True])
def test_of_equals_the_first_is_better(kernels: RowKernels, score_chosen: bool) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0] * 6, [float("-inf")] * 6])
    spec = RouterSpec(6, 4, score_chosen=score_chosen)
    assert route(kernels, logits, spec)[0].tolist() == [[1, 3, 2, 4], [0, 1, 2, 3], [0, 1, 2, 3]]
    groups = RouterSpec(6, 2, num_groups=3, kept_groups=1)
    assert route(kernels, logits, groups)[0].tolist() == [[1, 0], [0, 1], [0, 1]]


def test_what_is_not_a_number_is_chosen_and_told(kernels: RowKernels) -> None:
    """Experts stay within bounds, the row's weights are none, and other rows are as they were."""
    logits = rows_of(9, 24, torch.float32)
    broken = logits.clone()
    broken[4, 7], broken[6] = float("nan"), float("nan")
    whole = [i for i in range(9) if i not in (4, 6)]
    for spec in (RouterSpec(24, 3), ROUTERS["groups"], RouterSpec(24, 3, score_chosen=True)):
        experts, weights = route(kernels, broken, spec)
        assert experts.min() >= 0
        assert experts.max() < 24
        assert weights[[4, 6]].isnan().any(-1).all()
        for ours, theirs in zip((experts, weights), route(kernels, logits, spec), strict=True):
            assert torch.equal(ours[whole], theirs[whole])
    assert route(kernels, broken, RouterSpec(24, 3, score_chosen=True))[0][4, 0] == 7


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(("size", "columns"), [(1, 3), (40, 37), (96, 300)])
def test_products_of_segments(
    kernels: RowKernels, size: int, columns: int, dtype: torch.dtype
) -> None:
    """Each row as it is multiplied by its expert's matrix alone; what nobody chose is not read."""
    rows, matrices = rows_of(330, size, dtype), rows_of(4 * columns, size, dtype, 1)
    matrices, biases = matrices.view(4, columns, size), rows_of(4, columns, dtype, 2)
    matrices[1] = float("nan")
    segments = [(0, 0, 1), (2, 1, 301), (3, 301, 330)]
    for bias in (biases, None):
        out = multiply(kernels, rows, matrices, bias, segments)
        for expert, begin, end in segments:
            own = None if bias is None else bias[expert]
            alone = kernels.linear(rows[begin:end], matrices[expert], own)
            assert torch.equal(out[begin:end], alone)
    one = RowKernels(1, kernels.handle.instructions)
    assert torch.equal(multiply(one, rows, matrices, None, segments), out)
    assert multiply(kernels, rows[:0], matrices, None, []).shape == (0, columns)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("size", [1, 16, 101])
def test_sums(kernels: RowKernels, size: int, dtype: torch.dtype) -> None:
    rows, weights = rows_of(70 * 3, size, dtype), rows_of(70, 3, torch.float32, 1)
    places = torch.randperm(210, generator=torch.Generator().manual_seed(0)).view(70, 3)
    for given in (weights, None):
        out = combine(kernels, rows, places, given)
        scale = torch.ones(70, 3).double() if given is None else given.double()
        exact = (rows[places].double() * scale[..., None]).sum(1)
        torch.testing.assert_close(out.double(), exact, atol=2e-6, rtol=EXACT[dtype])
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    assert torch.equal(combine(kernels, rows, places[order], None), out[order])


def test_sums_follow_the_ranks(kernels: RowKernels) -> None:
    """2^24 + 1 + 1 in float32: the ones are lost unless they meet first."""
    rows = torch.tensor([[1.0], [2.0**24], [1.0], [1.0], [1.0], [2.0**24]])
    places = torch.tensor([[1, 0, 2], [3, 4, 5]])
    assert combine(kernels, rows, places, None).tolist() == [[2.0**24], [2.0**24 + 2]]


BLOCKS = {
    "plain": MoeSpec(RouterSpec(8, 3, renormalise=True), ExpertsSpec(24)),
    "gated_shared": MoeSpec(RouterSpec(8, 3), ExpertsSpec(21), MlpSpec(40), shared_gate=True),
    "weighed_input": MoeSpec(
        RouterSpec(8, 2, "sigmoid", score_chosen=True),
        ExpertsSpec(24, weigh_input=True),
        MlpSpec(24),
    ),
    "clamped": MoeSpec(
        RouterSpec(8, 3, score_chosen=True, bias=True),
        ExpertsSpec(24, "clamped_swiglu", limit=1.0, bias=True),
    ),
    "corrected": MoeSpec(
        replace(ROUTERS["corrected"], num_experts=16), ExpertsSpec(24), MlpSpec(48)
    ),
}


def block_of(spec: MoeSpec, dtype: torch.dtype) -> MoeBlock:
    block = MoeBlock(48, spec, dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in block.parameters():
        parameter.normal_(0.0, 0.3, generator=generator)
    return block


def by_rows(block: MoeBlock, kernels: RowKernels) -> MoeBlock:
    for module in block.modules():
        if hasattr(module, "rows"):
            module.rows = kernels
    return block


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(kernels: RowKernels, name: str, dtype: torch.dtype) -> None:
    x = rows_of(90, 48, dtype)
    block = block_of(BLOCKS[name], dtype)
    default = block(x)
    out = by_rows(block, kernels)(x)
    if dtype == torch.float32:
        torch.testing.assert_close(out, default, atol=1e-4, rtol=1e-4)
    assert_rows_are_their_own(block, x)
    for threads in (1, 3):
        others = RowKernels(threads, kernels.handle.instructions)
        other = by_rows(block_of(BLOCKS[name], dtype), others)
        assert torch.equal(other(x), out)


def test_without_rows_company_moves_a_block() -> None:
    """So the test above can fail."""
    block, x = block_of(BLOCKS["plain"], torch.float32), rows_of(90, 48, torch.float32)
    with pytest.raises(AssertionError):
        assert_rows_are_their_own(block, x)


def test_a_row_is_exact_to_its_dtype(kernels: RowKernels) -> None:
    """In bfloat16 no more is rounded than in the block that does not keep rows apart."""
    spec = BLOCKS["gated_shared"]
    x, block = rows_of(90, 48, torch.bfloat16), block_of(spec, torch.bfloat16)
    exact = MoeBlock(48, spec, torch.float64).requires_grad_(False)
    exact.load_state_dict(block.state_dict())
    expected = exact(x.double())
    default = (block(x).double() - expected).norm()
    assert 0 < (by_rows(block, kernels)(x).double() - expected).norm() < 1.2 * default
