# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tokens go to the experts that the router names, and each expert counts for what it should."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from slipstream.layers import experts as experts_module
from slipstream.layers.expert_rows import route
from slipstream.layers.experts import Dispatch, Experts, ExpertsSpec
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import ExpertLoad, MoeBlock, MoeSpec
from slipstream.layers.router import RouterSpec, choose
from slipstream.layers.rows import RowKernels

LOGITS = [0.0, math.log(4.0), math.log(2.0), math.log(3.0)]  # softmax: 0.1, 0.4, 0.2, 0.3


@pytest.fixture(params=["torch", "rows"])
def weights_by_expert(request):
    """A token's choice, in either implementation."""
    if request.param == "torch":
        return partial(_weights_by_expert, choose)
    return partial(_weights_by_expert, partial(route, RowKernels(1)))


def _weights_by_expert(choose, logits, spec, correction=None) -> dict[int, float]:
    bias = None if correction is None else torch.tensor(correction)
    experts, weights = choose(torch.tensor([logits]), spec, bias)
    return dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (RouterSpec(4, 2), {1: 0.4, 3: 0.3}),
        (RouterSpec(4, 2, renormalise=True), {1: 4 / 7, 3: 3 / 7}),
        (RouterSpec(4, 2, scale=2.5), {1: 1.0, 3: 0.75}),
        (RouterSpec(4, 2, score_chosen=True), {1: 4 / 7, 3: 3 / 7}),
        (RouterSpec(4, 1, "sigmoid", score_chosen=True), {1: 0.8}),
        (RouterSpec(4, 2, "sigmoid", renormalise=True), {1: 16 / 31, 3: 15 / 31}),
        # Groups {0, 1} and {2, 3}: the best expert is in the first, the best pair in the second.
        (RouterSpec(4, 2, num_groups=2, kept_groups=1), {1: 0.4, 0: 0.1}),
        (RouterSpec(4, 2, num_groups=2, kept_groups=1, group_rank="top2"), {1: 0.4, 0: 0.1}),
        (RouterSpec(4, 2, num_groups=2, kept_groups=2), {1: 0.4, 3: 0.3}),
    ],
)
def test_choices_and_weights(weights_by_expert, spec, expected):
    assert weights_by_expert(LOGITS, spec) == pytest.approx(expected)


def test_groups_rank_by_their_best_or_by_their_best_two(weights_by_expert):
    logits = [0.0, math.log(4.0), math.log(3.0), math.log(2.5)]
    best = RouterSpec(4, 2, num_groups=2, kept_groups=1)
    pair = RouterSpec(4, 2, num_groups=2, kept_groups=1, group_rank="top2")
    assert weights_by_expert(logits, best).keys() == {0, 1}
    assert weights_by_expert(logits, pair).keys() == {2, 3}


def test_a_correction_chooses_but_does_not_weigh(weights_by_expert):
    spec = RouterSpec(4, 1, "sigmoid", correction=True)
    assert weights_by_expert(LOGITS, spec, [0.5, 0.0, 0.0, 0.0]) == pytest.approx({0: 0.5})


def test_saturated_scores_do_not_hide_the_larger_logit(weights_by_expert):
    """Both sigmoids are 1 in float32: only the logits tell the experts apart."""
    spec = RouterSpec(3, 1, "sigmoid", score_chosen=True)
    assert weights_by_expert([40.0, 60.0, 50.0], spec) == {1: 1.0}


def filled(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.requires_grad_(False).normal_(0.0, 0.5, generator=generator)
    return module


def one_expert(experts: Experts, index: int, x: torch.Tensor) -> torch.Tensor:
    """A token through one expert, written as the formulas are."""
    spec = experts.spec
    inner = experts.gate_up[index].double() @ x
    if spec.bias:
        inner += experts.gate_up_bias[index]
    gate, up = inner[: spec.intermediate_size], inner[spec.intermediate_size :]
    if spec.activation == "swiglu":
        hidden = gate / (1 + torch.exp(-gate)) * up
    else:
        gate = torch.minimum(gate, torch.tensor(spec.limit))
        up = torch.maximum(torch.minimum(up, torch.tensor(spec.limit)), torch.tensor(-spec.limit))
        hidden = gate / (1 + torch.exp(-spec.alpha * gate)) * (up + 1)
    out = experts.down[index].double() @ hidden
    return out + experts.down_bias[index] if spec.bias else out


SPECS = {
    "swiglu": ExpertsSpec(10),
    "odd_width": ExpertsSpec(7),
    "clamped": ExpertsSpec(10, "clamped_swiglu", alpha=1.7, limit=0.6, bias=True),
    "biased_swiglu": ExpertsSpec(10, bias=True),
    "weigh_input": ExpertsSpec(10, weigh_input=True),
}
SPEC = MoeSpec(RouterSpec(6, 2), SPECS["swiglu"])


@pytest.fixture(params=["together", "one by one", "by rows"])
def way(request, monkeypatch):
    """How experts are computed on a CPU: as few rows are, as many are, each row as if alone."""
    if request.param == "by rows":
        monkeypatch.setattr(Experts, "rows", RowKernels(2))
    else:
        size = 1 << 40 if request.param == "together" else 0
        monkeypatch.setattr(experts_module, "_CACHED_BYTES", size)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts_sum_what_each_expert_gives(name, tokens):
    experts = filled(Experts(SPECS[name], 12, 6, torch.float32), seed=1)
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 12, generator=generator)
    chosen = torch.rand(tokens, 6, generator=generator).topk(3).indices
    weights = torch.rand(tokens, 3, generator=generator)
    out = experts(x, Dispatch.of(chosen, 6), weights)
    for token in range(tokens):
        expected = torch.zeros(12, dtype=torch.float64)
        for expert, weight in zip(chosen[token].tolist(), weights[token].double(), strict=True):
            if SPECS[name].weigh_input:
                expected += one_expert(experts, expert, x[token].double() * weight)
            else:
                expected += one_expert(experts, expert, x[token].double()) * weight
        torch.testing.assert_close(out[token].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("way")
def test_results_repeat():
    experts = filled(Experts(SPECS["swiglu"], 12, 6, torch.bfloat16), seed=1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 12, generator=generator).bfloat16()
    chosen = torch.rand(300, 6, generator=generator).topk(4).indices
    weights = torch.rand(300, 4, generator=generator)
    outs = [experts(x, Dispatch.of(chosen, 6), weights) for _ in range(5)]
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_one_by_one_rounds_no_more_than_together(monkeypatch):
    experts = filled(Experts(SPECS["swiglu"], 64, 6, torch.bfloat16), seed=1)
    exact = Experts(SPECS["swiglu"], 64, 6, torch.float32).requires_grad_(False)
    for ours, theirs in zip(exact.parameters(), experts.parameters(), strict=True):
        ours.copy_(theirs)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 64, generator=generator).bfloat16()
    dispatch = Dispatch.of(torch.rand(50, 6, generator=generator).topk(4).indices, 6)
    weights = torch.rand(50, 4, generator=generator).bfloat16().float()
    expected = exact(x.float(), dispatch, weights)
    together = (experts(x, dispatch, weights) - expected).abs().mean()
    monkeypatch.setattr(experts_module, "_CACHED_BYTES", 0)
    one_by_one = (experts(x, dispatch, weights) - expected).abs().mean()
    assert 0 < one_by_one < 1.1 * together


@pytest.mark.usefixtures("way")
def test_experts_that_no_token_chose_are_not_read():
    experts = filled(Experts(ExpertsSpec(10), 12, 4, torch.float32), seed=2)
    for unused in (0, 2):
        experts.gate_up[unused] = float("nan")
        experts.down[unused] = float("nan")
    dispatch = Dispatch.of(torch.tensor([[3, 1], [1, 3]]), 4)
    assert dispatch.segments() == [(1, 0, 2), (3, 2, 4)]
    assert experts(torch.ones(2, 12), dispatch, torch.ones(2, 2)).isfinite().all()


@pytest.mark.usefixtures("way")
def test_a_token_is_the_same_alone_and_in_a_batch():
    block = filled(MoeBlock(12, SPEC, torch.float32), seed=3)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(4))
    together = block(x)
    alone = torch.cat([block(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_add_to_the_chosen_ones(gated):
    block = filled(
        MoeBlock(12, replace(SPEC, shared=MlpSpec(9), shared_gate=gated), torch.float32),
        seed=5,
    )
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(6))
    chosen, weights = block.router(x)
    routed = block.experts(x, Dispatch.of(chosen, 6), weights)
    gate, up = F.linear(x, block.shared.gate_up.weight).chunk(2, -1)
    shared = F.linear(F.silu(gate) * up, block.shared.down.weight)
    if gated:
        shared = shared * torch.sigmoid(x @ block.shared_gate.weight[0])[:, None]
    torch.testing.assert_close(block(x), routed + shared)


def test_load_counts_every_token_of_every_layer():
    blocks = {layer: filled(MoeBlock(12, SPEC, torch.float32), seed=layer) for layer in (1, 3)}
    load = ExpertLoad(blocks, torch.device("cpu"))
    assert load.layers == (1, 3)
    assert load.imbalance() == [1.0, 1.0]
    expected = torch.zeros(2, 6, dtype=torch.int64)
    for step, tokens in enumerate((1, 5, 33)):
        x = torch.randn(tokens, 12, generator=torch.Generator().manual_seed(step))
        for row, block in enumerate(blocks.values()):
            block(x)
            for expert in block.router(x)[0].flatten().tolist():
                expected[row, expert] += 1
    counts = load.counts()
    assert torch.equal(counts, expected)
    reading = load.begin_reading()
    assert reading.done()
    assert torch.equal(reading.counts, expected)
    assert load.imbalance() == pytest.approx((expected.amax(1) / (39 * 2 / 6)).tolist())
    blocks[1](torch.ones(1, 12))
    assert torch.equal(counts, expected), "a reading does not change afterwards"
    assert torch.equal(reading.counts, expected)
