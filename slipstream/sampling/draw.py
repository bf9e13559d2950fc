# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature, top-k, top-p, min-p and the draw itself, for a batch of rows.

Every filter is a threshold on the row's weights, so that it depends on values and never on the
order in which a sort leaves equal ones: tokens as likely as the last one kept are kept too. The
draw inverts the cumulative distribution in token order. Each row depends on nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# (weights [rows, vocab], the rows' parameter) -> least weight that stays, a row.
Threshold = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_SORTED = 1024  # most likely tokens that top-p looks at before it sorts the whole vocabulary


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Draws one token a row.

    logits: float32 ``[rows, vocab]``; temperature: float32 ``[rows]``, above 0; top_k: int64
    ``[rows]``, 0 for no limit; top_p and min_p: float32 ``[rows]``; uniform: float64 ``[rows]`` in
    [0, 1). The filter tensors are on the CPU, the others on the device of the logits. Returns
    int64 ``[rows]``.
    """
    weights = filtered_weights(logits, temperature, top_k, top_p, min_p)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # Rounding must not push the target to the total: no token lies beyond it.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return drawn.clamp_(max=logits.shape[-1] - 1)


def filtered_weights(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """Unnormalised probabilities after all filters: float32 ``[rows, vocab]``, 1 for the most
    likely token and 0 for a filtered one. Arguments as in :func:`draw`."""
    weights = logits - logits.amax(-1, keepdim=True)
    weights = weights.div_(temperature[:, None]).exp_()
    limited = (top_k > 0) & (top_k < logits.shape[-1])
    _filter_rows(weights, limited, top_k, _top_k_threshold)
    _filter_rows(weights, top_p < 1.0, top_p, _top_p_threshold)
    _filter_rows(weights, min_p > 0.0, min_p, lambda rows, value: value.to(rows))
    return weights


def _top_k_threshold(weights: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    largest = weights.topk(int(top_k.max()), dim=-1).values
    return largest.gather(1, (top_k - 1).to(weights.device)[:, None])[:, 0]


def _top_p_threshold(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The weight of the last token of the smallest set that holds top_p of the mass."""
    mass = weights.sum(-1, dtype=torch.float64) * top_p.to(weights.device)
    count = min(_SORTED, weights.shape[-1])
    largest = weights.topk(count, dim=-1).values
    below = _count_below(largest, mass)
    if count < weights.shape[-1] and bool((below == count).any()):
        largest = weights.sort(dim=-1, descending=True).values
        below = _count_below(largest, mass)
    last = below.clamp_(max=largest.shape[-1] - 1)
    return largest.gather(1, last[:, None])[:, 0]


def _count_below(largest: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    return (largest.cumsum(-1, dtype=torch.float64) < mass[:, None]).sum(-1)


def _filter_rows(
    weights: torch.Tensor, chosen: torch.Tensor, values: torch.Tensor, threshold: Threshold
) -> None:
    """Zeroes, in the chosen rows, the weights that are below the row's threshold."""
    if bool(chosen.all()):
        weights.masked_fill_(weights < threshold(weights, values)[:, None], 0.0)
    elif bool(chosen.any()):
        rows = chosen.nonzero()[:, 0]
        some = weights[rows.to(weights.device)]
        some.masked_fill_(some < threshold(some, values[rows])[:, None], 0.0)
        weights[rows.to(weights.device)] = some
