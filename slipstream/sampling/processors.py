# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases and masks. Each applies to all rows of a batch that want it at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from slipstream.sampling.state import Feature, SamplingSlots

IntArray = npt.NDArray[np.int64]

PROCESSING = Feature.PENALTIES | Feature.BIAS | Feature.BAD_WORDS | Feature.MIN_TOKENS


def process_(logits: torch.Tensor, slots: IntArray, index: IntArray, state: SamplingSlots) -> None:
    """Applies penalties, then biases, then masks to float32 ``[rows, vocab]``, in place.

    slots and index: ``[rows]``; index is the generated index of the token to sample.
    """
    features = state.features[slots]
    if (rows := np.flatnonzero(features & Feature.PENALTIES)).size:
        _penalize(logits, rows, slots, state)
    if (rows := np.flatnonzero(features & Feature.BIAS)).size:
        details = [state.detail(slots[row]) for row in rows]
        places = _places(logits, rows, [detail.bias_ids for detail in details])
        values = torch.from_numpy(np.concatenate([detail.bias_values for detail in details]))
        logits.view(-1).index_add_(0, places, values.to(logits.device))
    rows, tokens = banned_tokens(slots, index, state)
    if rows.size:
        flat = torch.from_numpy(rows * logits.shape[-1] + tokens)
        logits.view(-1)[flat.to(logits.device)] = float("-inf")


def _penalize(logits: torch.Tensor, rows: IntArray, slots: IntArray, state: SamplingSlots) -> None:
    """Divides positive and multiplies negative logits of seen tokens by the repetition penalty
    (Keskar et al., CTRL), then subtracts presence + frequency * count."""
    details = [state.detail(slots[row]) for row in rows]
    counters = [detail.counts for detail in details if detail.counts is not None]
    sizes = [counter.ids.size for counter in counters]
    places = _places(logits, rows, [counter.ids for counter in counters])
    per_row = np.array(
        [
            (d.params.repetition_penalty, d.params.presence_penalty, d.params.frequency_penalty)
            for d in details
        ],
        np.float32,
    )
    repetition, presence, frequency = np.repeat(per_row, sizes, axis=0).T
    offset = presence + frequency * np.concatenate([counter.counts for counter in counters])
    factor = torch.from_numpy(np.ascontiguousarray(repetition)).to(logits.device)
    flat = logits.view(-1)
    values = flat[places]
    values = torch.where(values < 0, values * factor, values / factor)
    flat[places] = values - torch.from_numpy(offset).to(logits.device)


def banned_tokens(
    slots: IntArray, index: IntArray, state: SamplingSlots
) -> tuple[IntArray, IntArray]:
    """Tokens that must not come next: bad words and, while too few were generated, end ids.

    Arguments as of process_. Returns rows, and the token of each that is banned there.
    """
    features = state.features[slots]
    rows: list[int] = []
    banned: list[IntArray] = []
    for row in np.flatnonzero(features & Feature.BAD_WORDS):
        words = state.detail(slots[row]).bad_words
        assert words is not None
        rows.append(int(row))
        banned.append(np.array(words.banned(), np.int64))
    for row in np.flatnonzero(features & Feature.MIN_TOKENS):
        params = state.detail(slots[row]).params
        if index[row] < params.min_tokens:
            rows.append(int(row))
            banned.append(np.array(params.end_ids, np.int64))
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.repeat(rows, [tokens.size for tokens in banned]), np.concatenate(banned)


def _places(logits: torch.Tensor, rows: IntArray, tokens: Sequence[IntArray]) -> torch.Tensor:
    """Flat indices of each row's tokens."""
    sizes = [ids.size for ids in tokens]
    flat = np.repeat(rows * logits.shape[-1], sizes) + np.concatenate(tokens)
    return torch.from_numpy(flat).to(logits.device)
