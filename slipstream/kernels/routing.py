# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The choice of each token's experts, and their weights, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

_TINY = tl.constexpr(1e-20)  # as in layers/router.py


def choose_experts(
    logits: torch.Tensor,
    top_k: int,
    dtype: torch.dtype,
    *,
    sigmoid: bool,
    score_chosen: bool,
    renormalise: bool,
    scale: float,
    correction: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: ``[tokens, experts]``; correction: float32 ``[experts]``; the rest as of RouterSpec,
    without groups. Returns experts, int32, and weights of ``dtype``: each ``[tokens, top_k]``, the
    best first. Among equal ones the first is better."""
    tokens, num_experts = logits.shape
    experts = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    weights = torch.empty((tokens, top_k), dtype=dtype, device=logits.device)
    _choose[(tokens,)](
        logits,
        correction,
        experts,
        weights,
        scale,
        EXPERTS=num_experts,
        EXPERT_BLOCK=triton.next_power_of_2(num_experts),
        TOP_K=top_k,
        CHOSEN_BLOCK=triton.next_power_of_2(top_k),
        SIGMOID=sigmoid,
        SCORE_CHOSEN=score_chosen,
        RENORMALISE=renormalise,
        CORRECTED=correction is not None,
        num_warps=1 if num_experts <= 256 else 4,
        **launch_options(),
    )
    return experts, weights


@triton.jit
def _scores(logits, inside, SIGMOID: tl.constexpr):
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp(-logits))
    highest = tl.max(tl.where(inside, logits, float("-inf")))
    weights = tl.where(inside, tl.exp(logits - highest), 0.0)
    return weights / tl.sum(weights)


@triton.jit
def _choose(
    logits,
    correction,
    experts,
    weights,
    scale,
    EXPERTS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN_BLOCK: tl.constexpr,
    SIGMOID: tl.constexpr,
    SCORE_CHOSEN: tl.constexpr,
    RENORMALISE: tl.constexpr,
    CORRECTED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    token = tl.program_id(0)
    expert = tl.arange(0, EXPERT_BLOCK)
    inside = expert < EXPERTS
    row = token.to(tl.int64) * EXPERTS
    logit = tl.load(logits + row + expert, inside, other=0.0).to(tl.float32)
    if SCORE_CHOSEN:
        score = logit
    else:
        score = _scores(logit, inside, SIGMOID)
    ranked = logit  # scores rise with them
    if CORRECTED:
        ranked = score + tl.load(correction + expert, inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    place = tl.arange(0, CHOSEN_BLOCK)
    chosen = tl.zeros([CHOSEN_BLOCK], tl.int32)
    value = tl.zeros([CHOSEN_BLOCK], tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.max(ranked)
        first = tl.min(tl.where(ranked == best, expert, EXPERTS - 1))  # of NaNs: any that exists
        mine = expert == first
        chosen = tl.where(place == i, first, chosen)
        value = tl.where(place == i, tl.sum(tl.where(mine, score, 0.0)), value)
        ranked = tl.where(mine, float("-inf"), ranked)
    real = place < TOP_K
    if SCORE_CHOSEN:
        value = _scores(value, real, SIGMOID)
    if RENORMALISE:
        value = value / (tl.sum(tl.where(real, value, 0.0)) + _TINY)
    value *= scale
    out = token.to(tl.int64) * TOP_K + place
    tl.store(experts + out, chosen, real)
    tl.store(weights + out, value, real)
