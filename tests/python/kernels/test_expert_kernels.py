# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Routing and experts by kernels, against what torch computes of the same layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from slipstream.kernels.experts import sort_pairs
from slipstream.kernels.routing import choose_experts
from slipstream.layers import moe, router
from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import ExpertLoad, MoeBlock, MoeSpec
from slipstream.layers.router import RouterSpec, choose

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUTERS = {
    "softmax": RouterSpec(6, 2),
    "renormalised": RouterSpec(128, 8, renormalise=True),
    "scaled": RouterSpec(60, 4, scale=2.5),
    "of chosen ones": RouterSpec(32, 4, score_chosen=True),
    "one, by sigmoid": RouterSpec(16, 1, "sigmoid", score_chosen=True),
    "sigmoid, corrected": RouterSpec(
        24, 3, "sigmoid", renormalise=True, scale=1.5, correction=True
    ),
    "softmax, corrected": RouterSpec(300, 6, correction=True),
    "all": RouterSpec(5, 5, renormalise=True),
}


def by_kernel(
    logits: torch.Tensor, spec: RouterSpec, correction: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    return choose_experts(
        logits,
        spec.top_k,
        dtype,
        sigmoid=spec.score == "sigmoid",
        score_chosen=spec.score_chosen,
        renormalise=spec.renormalise,
        scale=spec.scale,
        correction=correction,
    )


def dense(experts: torch.Tensor, weights: torch.Tensor, count: int) -> torch.Tensor:
    """The weight of every expert: ``[tokens, count]``."""
    out = torch.zeros(len(experts), count, device=experts.device)
    return out.scatter_(1, experts.long(), weights.float())


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_and_weights(name: str, dtype: torch.dtype) -> None:
    spec = ROUTERS[name]
    torch.manual_seed(0)
    logits = (3 * torch.randn(33, spec.num_experts, device=DEVICE)).to(dtype)
    correction = torch.rand(spec.num_experts, device=DEVICE) if spec.correction else None
    experts, weights = by_kernel(logits, spec, correction, dtype)
    assert (experts.dtype, weights.dtype) == (torch.int32, dtype)
    theirs, expected = choose(logits.float(), spec, correction)
    # Torch may take another one of several equal ones: what they weigh is the same.
    torch.testing.assert_close(
        weights.float().sort(1).values,
        expected.to(dtype).float().sort(1).values,
        rtol=1e-5 if dtype == torch.float32 else 1e-2,
        atol=1e-6,
    )
    if dtype == torch.float32:
        got = dense(experts, weights, spec.num_experts)
        torch.testing.assert_close(got, dense(theirs, expected, spec.num_experts))
        assert torch.equal(experts.long().sort(1).values, theirs.sort(1).values)


def test_of_equal_ones_the_first_is_taken_and_what_is_not_finite_stays_in_bounds() -> None:
    spec = RouterSpec(6, 3)
    logits = torch.zeros(3, 6, device=DEVICE)
    logits[1] = float("nan")
    logits[2] = torch.tensor([200.0, 300.0, -300.0, 301.0, 0.0, 0.0])
    experts, _ = by_kernel(logits, spec, None, torch.float32)
    assert experts[0].tolist() == [0, 1, 2]
    assert 0 <= int(experts[1].min()) <= int(experts[1].max()) < 6
    assert experts[2].tolist() == [3, 1, 0], "though their scores underflow"


def test_pairs_are_sorted_and_counted() -> None:
    torch.manual_seed(1)
    experts = torch.randint(0, 7, (50, 3), device=DEVICE, dtype=torch.int32)
    load = torch.arange(7, device=DEVICE)
    pairs = sort_pairs(experts, 7, load)
    flat = experts.flatten().long()
    assert torch.equal(pairs.order.long(), flat.argsort(stable=True))
    counts = flat.bincount(minlength=7)
    assert torch.equal(pairs.counts.long(), counts)
    assert torch.equal(load, torch.arange(7, device=DEVICE) + counts)
    assert torch.equal(sort_pairs(experts, 7).ends.long(), counts.cumsum(0))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers use kernels, wherever they are."""
    for module in (moe, router):
        monkeypatch.setattr(module, "has_kernels", lambda device: True)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize(
    "spec",
    [
        MoeSpec(RouterSpec(6, 2, renormalise=True), ExpertsSpec(32)),
        MoeSpec(
            RouterSpec(6, 3, score_chosen=True, bias=True),
            ExpertsSpec(16, "clamped_swiglu", alpha=1.7, limit=0.6, bias=True),
        ),
        MoeSpec(RouterSpec(4, 1, "sigmoid"), ExpertsSpec(16, weigh_input=True)),
        MoeSpec(
            RouterSpec(8, 2, "sigmoid", num_groups=4, kept_groups=2, group_rank="top2"),
            ExpertsSpec(16),
            MlpSpec(24),
        ),
    ],
)
def test_a_block_is_what_torch_makes_of_it(kernels: None, spec: MoeSpec) -> None:
    torch.manual_seed(2)
    block = MoeBlock(32, spec, torch.float32).to(DEVICE)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(21, 32, device=DEVICE)
    load = ExpertLoad({0: block}, DEVICE)
    with torch.inference_mode():
        out = block(x)
        counts = load.counts()
        moe.has_kernels = router.has_kernels = lambda device: False
        expected = block(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(load.counts(), 2 * counts)
    assert int(counts.sum()) == 21 * spec.router.top_k
