# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""One token for each row of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from slipstream.sampling.draw import draw
from slipstream.sampling.processors import PROCESSING, process_
from slipstream.sampling.rng import uniform
from slipstream.sampling.state import TRACKING, Feature, SamplingSlots

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log probabilities of the rows, one after the other.

    A row has ``width`` entries: none if 0, else the chosen token's and then the most likely ones',
    descending. Natural logarithms of the softmax of the unprocessed logits.
    """

    width: npt.NDArray[np.uint32]  # [rows]
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens: int64 ``[rows]`` on the logits' device. finite: whether the row's logits were; the
    token of a row where they were not means nothing."""

    tokens: torch.Tensor
    finite: npt.NDArray[np.bool_]
    logprobs: Logprobs


def sample(logits: torch.Tensor, slots: IntArray, index: IntArray, state: SamplingSlots) -> Sampled:
    """Samples each row by its slot's parameters and records the tokens in the slots' histories.

    logits: float32 ``[rows, vocab]``, rows that are not finite are overwritten; slots: ``[rows]``,
    distinct; index: ``[rows]``, how many tokens each sequence generated before this one.
    """
    finite = _finite_rows(logits)
    if not finite.all():
        logits[torch.from_numpy(~finite).to(logits.device)] = 0.0
    features = int(np.bitwise_or.reduce(state.features[slots]))
    processed = logits
    if features & PROCESSING:
        processed = logits.clone()
        process_(processed, slots, index, state)
    tokens = _choose(processed, slots, index, state)
    logprobs = _logprobs(logits, tokens, slots, state, bool(features & Feature.LOGPROBS))
    if features & TRACKING:
        _record(tokens, finite, slots, state)
    return Sampled(tokens, finite, logprobs)


def sample_apart(
    logits: torch.Tensor, slots: IntArray, index: IntArray, state: SamplingSlots
) -> Sampled:
    """As :func:`sample`, every row to the bit as if it were the only one.

    A row that takes its largest logit and tells no log probability is not rounded at all. Others
    are computed one by one: of exponentials and sums of several rows torch promises nothing.
    """
    rounded = (state.temperature[slots] > 0.0) | (state.num_logprobs[slots] >= 0)
    if not rounded.any():
        return sample(logits, slots, index, state)
    pieces: list[IntArray] = [np.array([row]) for row in np.flatnonzero(rounded)]
    if not rounded.all():
        pieces.append(np.flatnonzero(~rounded))
    rows = np.concatenate(pieces)
    parts = [sample(logits[torch.from_numpy(p)], slots[p], index[p], state) for p in pieces]
    tokens = torch.empty(slots.size, dtype=torch.int64, device=logits.device)
    tokens[torch.from_numpy(rows)] = torch.cat([part.tokens for part in parts])
    finite, width = np.empty(slots.size, np.bool_), np.empty(slots.size, np.uint32)
    finite[rows] = np.concatenate([part.finite for part in parts])
    width[rows] = np.concatenate([part.logprobs.width for part in parts])
    # Rows of no width come last among the pieces; the others are in order.
    ids = np.concatenate([part.logprobs.ids for part in parts])
    values = np.concatenate([part.logprobs.values for part in parts])
    return Sampled(tokens, finite, Logprobs(width, ids, values))


def _finite_rows(logits: torch.Tensor) -> npt.NDArray[np.bool_]:
    low, high = torch.aminmax(logits, dim=-1)  # both carry a NaN through
    finite: npt.NDArray[np.bool_] = (torch.isfinite(low) & torch.isfinite(high)).cpu().numpy()
    return finite


def _choose(
    logits: torch.Tensor, slots: IntArray, index: IntArray, state: SamplingSlots
) -> torch.Tensor:
    random = state.temperature[slots] > 0.0
    if not random.any():
        return logits.argmax(-1)
    if random.all():
        return _draw(logits, slots, index, state)
    rows = torch.from_numpy(np.flatnonzero(random)).to(logits.device)
    tokens = logits.argmax(-1)
    tokens[rows] = _draw(logits[rows], slots[random], index[random], state)
    return tokens


def _draw(
    logits: torch.Tensor, slots: IntArray, index: IntArray, state: SamplingSlots
) -> torch.Tensor:
    top_p = state.top_p[slots]
    for row in np.flatnonzero(state.features[slots] & Feature.TOP_P_DECAY):
        top_p[row] = state.detail(slots[row]).top_p()
    return draw(
        logits,
        torch.from_numpy(state.temperature[slots]).to(logits.device),
        torch.from_numpy(state.top_k[slots]),
        torch.from_numpy(top_p),
        torch.from_numpy(state.min_p[slots]),
        torch.from_numpy(uniform(state.seed[slots], index)).to(logits.device),
    )


def _logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, slots: IntArray, state: SamplingSlots, wanted: bool
) -> Logprobs:
    if not wanted:
        nothing = np.empty(0, np.int32)
        return Logprobs(np.zeros(slots.size, np.uint32), nothing, nothing.view(np.float32))
    vocab = logits.shape[-1]
    width = np.minimum(state.num_logprobs[slots], vocab) + 1  # 0 where none are wanted
    rows = np.flatnonzero(width)
    most = int(width.max()) - 1
    selected = logits[torch.from_numpy(rows).to(logits.device)]
    chosen = tokens[torch.from_numpy(rows).to(logits.device)][:, None]
    best = selected.topk(most, dim=-1)
    ids = torch.cat((chosen, best.indices), 1)
    values = torch.cat((selected.gather(1, chosen), best.values), 1)
    values -= selected.logsumexp(-1, keepdim=True)
    kept = np.arange(most + 1) < width[rows][:, None]
    return Logprobs(
        width.astype(np.uint32),
        ids.cpu().numpy()[kept].astype(np.int32),
        values.cpu().numpy()[kept],
    )


def _record(
    tokens: torch.Tensor,
    finite: npt.NDArray[np.bool_],
    slots: IntArray,
    state: SamplingSlots,
) -> None:
    chosen = tokens.cpu().numpy()
    for row in np.flatnonzero(state.features[slots] & TRACKING):
        if finite[row]:
            state.detail(slots[row]).add(int(chosen[row]))
