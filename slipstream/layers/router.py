# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.layers.device import has_kernels
from slipstream.layers.expert_rows import route
from slipstream.layers.rows import RowKernels

# Keeps the renormalisation finite when every chosen score underflows.
_TINY = 1e-20


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How ``top_k`` of ``num_experts`` are chosen and weighed.

    ``score`` turns logits into weights: over all experts, or with ``score_chosen`` over the chosen
    ones alone, which are then chosen by their logits. ``renormalise`` makes a token's weights sum
    to 1 before they are multiplied by ``scale``.

    With ``num_groups`` above 1 the experts form groups of equal size, in order; only the
    ``kept_groups`` best compete, ranked by their best score (``max``) or by the sum of their two
    best (``top2``). ``correction`` adds a learned bias to the scores that choose, not to the
    weights. ``exact`` computes the logits in float32, whatever the model's dtype.
    """

    num_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    score_chosen: bool = False
    renormalise: bool = False
    scale: float = 1.0
    num_groups: int = 1
    kept_groups: int = 1
    group_rank: Literal["max", "top2"] = "max"
    bias: bool = False
    correction: bool = False
    exact: bool = False


class Router(nn.Module):
    """A linear map to one logit an expert, and the choice among them. ``rows``: set if no token may
    depend on the others."""

    rows: RowKernels | None = None

    def __init__(self, spec: RouterSpec, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        dtype = torch.float32 if spec.exact else dtype
        self.weight = nn.Parameter(torch.empty(spec.num_experts, hidden, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(spec.num_experts, dtype=dtype)) if spec.bias else None
        # The correction moves scores near each other: bfloat16 would merge them.
        self.correction = (
            nn.Parameter(torch.empty(spec.num_experts, dtype=torch.float32))
            if spec.correction
            else None
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: ``[tokens, hidden]``. Returns experts and weights, each ``[tokens, top_k]``, in no
        particular order; with ``rows`` the best first. By kernels they are int32 and of x's dtype,
        else int64 and float32."""
        if self.rows is not None:
            logits = self.rows.linear(x.to(self.weight.dtype), self.weight, self.bias).float()
            return route(self.rows, logits, self.spec, self.correction)
        logits = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        spec = self.spec
        if not has_kernels(x.device) or spec.kept_groups < spec.num_groups:
            return choose(logits.float(), spec, self.correction)
        from slipstream.kernels.routing import choose_experts

        return choose_experts(
            logits,
            spec.top_k,
            x.dtype,
            sigmoid=spec.score == "sigmoid",
            score_chosen=spec.score_chosen,
            renormalise=spec.renormalise,
            scale=spec.scale,
            correction=self.correction,
        )


def choose(
    logits: torch.Tensor, spec: RouterSpec, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: float32 ``[tokens, num_experts]``; correction: ``[num_experts]``. Returns experts and
    weights as :class:`Router` does."""
    if spec.score_chosen:
        chosen, experts = logits.topk(spec.top_k, dim=-1)
        weights = _scores(chosen, spec)
    else:
        scores = _scores(logits, spec)
        ranked = scores if correction is None else scores + correction
        experts = _limited(ranked, spec).topk(spec.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
    if spec.renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    return experts, weights if spec.scale == 1.0 else weights * spec.scale


def _scores(logits: torch.Tensor, spec: RouterSpec) -> torch.Tensor:
    return logits.softmax(-1) if spec.score == "softmax" else logits.sigmoid()


def _limited(ranked: torch.Tensor, spec: RouterSpec) -> torch.Tensor:
    """Scores with minus infinity for every expert outside a token's best groups."""
    if spec.kept_groups == spec.num_groups:
        return ranked
    groups = ranked.unflatten(-1, (spec.num_groups, -1))
    best = groups.topk(1 if spec.group_rank == "max" else 2, dim=-1).values.sum(-1)
    kept = best.topk(spec.kept_groups, dim=-1).indices
    outside = torch.ones_like(best, dtype=torch.bool).scatter_(-1, kept, False)
    return groups.masked_fill(outside[..., None], float("-inf")).flatten(-2)
