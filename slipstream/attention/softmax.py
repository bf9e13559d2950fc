# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention over gathered keys and values."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from slipstream.attention.interface import ScoreSpec


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: ScoreSpec,
    *,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sums of values: ``[..., rows, value_dim]``.

    queries ``[..., rows, dim]``, keys and values ``[..., columns, dim or value_dim]``;
    mask: added to the scores, broadcast over the leading dimensions; is_causal: row r sees columns
    up to r, and there is no mask. sinks: broadcasts against ``[..., rows, 1]``.
    """
    if scores.soft_cap is None and sinks is None:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=scores.scale
        )
    assert not is_causal
    logits = queries.float() @ keys.float().transpose(-1, -2)
    logits *= scores.scale
    if scores.soft_cap is not None:
        logits = logits.div_(scores.soft_cap).tanh_().mul_(scores.soft_cap)
    if mask is not None:
        logits += mask
    if sinks is not None:
        column = sinks.float().expand(*logits.shape[:-1], 1)
        weights = torch.cat((logits, column), -1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    return (weights @ values.float()).to(queries.dtype)
