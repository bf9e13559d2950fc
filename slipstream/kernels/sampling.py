# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature, top-k, top-p, min-p and the draw on the device, one program a row.

The same rules as ``sampling.draw``: every filter is a least weight, found here without a sort.
The bits of floats from 0 to 1 are ordered as the floats are, so a threshold is bisected in them
until no weight lies between the bounds. A first look at the row gives a bound below every filter's
threshold; the few tokens above it are gathered in token order, and all else looks at those alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

_BLOCK = 4096
_CAPACITY = 32768  # tokens that can be gathered a row; if more qualify, the row itself is searched
_WARPS = 32

_ONE = tl.constexpr(0x3F800000)  # the bits of 1, the most likely token's weight
_FLOOR_STEPS = tl.constexpr(12)  # bisections of the first bound: it is within 1/16 of the best one


@triton.jit
def _exp(x):
    """e^x for x <= 0 within 2 units in the last place, as tl.exp is not; 0 for what is subnormal or
    NaN."""
    safe = tl.maximum(x, -87.0)
    power = tl.floor(safe * 1.4426950408889634 + 0.5)
    rest = tl.fma(power, -0.693147182464599609375, safe)
    rest = tl.fma(power, 1.904654323148236017e-9, rest)
    scale = ((power.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x >= -87.0, tl.exp2(rest * 1.4426950408889634) * scale, 0.0)


@triton.jit
def _bits(weights):
    return weights.to(tl.int32, bitcast=True)


@triton.jit
def _weights(logits, highest, heat):
    return _exp(tl.div_rn(logits - highest, heat))


@triton.jit
def _load(row, kept, gathered, count, start, highest, heat, BLOCK: tl.constexpr):
    """Ids and weights of the tokens from ``start`` on; weight 0 past the end."""
    places = start + tl.arange(0, BLOCK)
    inside = places < count
    ids = tl.load(kept + places, mask=inside & (gathered != 0), other=0)
    ids = tl.where(gathered != 0, ids, places)
    logits = tl.load(row + ids, mask=inside, other=float("-inf")).to(tl.float32)
    return ids, tl.where(inside, _weights(logits, highest, heat), 0.0)


@triton.jit
def _mass(row, kept, gathered, count, highest, heat, least, BLOCK: tl.constexpr):
    """The mass of the weights whose bits are at least ``least``."""
    mass = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        _, weights = _load(row, kept, gathered, count, start, highest, heat, BLOCK)
        mass += tl.where(_bits(weights) >= least, weights, 0.0).to(tl.float64)
    return tl.sum(mass, 0)


@triton.jit
def _threshold(
    row, kept, gathered, count, highest, heat, low, wanted, COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The bits of the greatest weight such that the weights from it on are ``wanted`` in number
    (COUNT) or in mass; ``low`` if there is none. low: bits from which on there is enough."""
    high = _ONE + 1
    while high - low > 1:
        middle = (low + high) // 2
        sums = tl.zeros([BLOCK], tl.float64)
        below = tl.full([BLOCK], -1, tl.int32)
        above = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
        for start in range(0, count, BLOCK):
            _, weights = _load(row, kept, gathered, count, start, highest, heat, BLOCK)
            bits = _bits(weights)
            upper = bits >= middle
            added = tl.where(upper, 1.0, 0.0) if COUNT else tl.where(upper, weights, 0.0)
            sums += added.to(tl.float64)
            below = tl.maximum(below, tl.where(upper, -1, bits))
            above = tl.minimum(above, tl.where(upper, bits, 0x7FFFFFFF))
        # No weight lies between the middle and its neighbours: the bounds move on to those.
        enough = tl.sum(sums, 0) >= wanted
        low = tl.where(enough, tl.minimum(tl.min(above, 0), high - 1), low)
        high = tl.where(enough, high, tl.maximum(tl.max(below, 0), low) + 1)
    return low


@triton.jit
def _first_bound(peaks, highest, heat, limit, share, total, VOCAB: tl.constexpr):
    """Bits below the threshold of top-k (limit > 0) or top-p: what suffices among the peaks, which
    are some of the row's logits, suffices in the row."""
    weights = _weights(peaks, highest, heat)
    bits = _bits(weights)
    low = 0
    high = _ONE + 1
    wanted = share * total
    for _ in range(_FLOOR_STEPS):
        middle = (low + high) // 2
        if limit > 0:
            enough = tl.sum((bits >= middle).to(tl.int32), 0) >= limit
        else:
            enough = tl.sum(tl.where(bits >= middle, weights, 0.0).to(tl.float64), 0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    if limit <= 0:
        # All that is lighter than this is less than half of what top-p may leave out.
        negligible = 0.5 * (1.0 - share) * total / VOCAB
        low = tl.maximum(low, _bits(tl.minimum(negligible, 1.0).to(tl.float32)))
    return low


@triton.jit
def _gather(row, kept, highest, heat, least, VOCAB: tl.constexpr, CAPACITY: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """Writes the ids of weights from ``least`` on in ascending order; returns how many, or -1 if
    they might not fit."""
    count = 0
    start = 0
    while (start < VOCAB) & (count <= CAPACITY - BLOCK):
        ids, weights = _load(row, kept, 0, VOCAB, start, highest, heat, BLOCK)
        chosen = (_bits(weights) >= least).to(tl.int32)
        places = count + tl.cumsum(chosen, 0) - 1
        tl.store(kept + places, ids, mask=chosen != 0)
        count += tl.sum(chosen, 0)
        start += BLOCK
    tl.debug_barrier()  # other threads of the program read what was written
    return tl.where(start < VOCAB, -1, count)


@triton.jit
def _invert(row, kept, gathered, count, highest, heat, least, uniform, BLOCK: tl.constexpr):
    """The first token at which the cumulative mass exceeds ``uniform`` of the whole; -1 if there is
    no mass."""
    total = _mass(row, kept, gathered, count, highest, heat, least, BLOCK)
    before_total = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    target = tl.minimum(uniform * total, tl.where(total > 0.0, before_total, 0.0))
    token = -1
    last = -1  # of positive weight: the answer if the sums, rounded otherwise, end at the target
    passed = tl.full([], 0.0, tl.float64)
    start = 0
    while (start < count) & (token < 0):
        ids, weights = _load(row, kept, gathered, count, start, highest, heat, BLOCK)
        weights = tl.where(_bits(weights) >= least, weights, 0.0)
        wide = weights.to(tl.float64)
        last = tl.maximum(last, tl.max(tl.where(weights > 0.0, ids, -1), 0))
        after = passed + tl.sum(wide, 0)
        if after > target:
            beyond = (passed + tl.cumsum(wide, 0) > target) & (weights > 0.0)
            first = tl.min(tl.where(beyond, ids, 0x7FFFFFFF), 0)
            token = tl.minimum(first, tl.where(first == 0x7FFFFFFF, last, first))
        passed = after
        start += BLOCK
    return tl.where(token < 0, last, token)


@triton.jit
def _draw_rows(
    logits, temperature, top_k, top_p, min_p, uniform, tokens, scratch,
    VOCAB: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    index = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + index)
    if heat > 0.0:
        row = logits + index * VOCAB
        kept = scratch + index * CAPACITY
        limit = tl.load(top_k + index).to(tl.int32)
        limit = tl.where(limit < VOCAB, limit, 0)
        share = tl.load(top_p + index).to(tl.float64)
        fraction = tl.load(min_p + index)

        lanes = tl.arange(0, BLOCK)
        peaks = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            inside = start + lanes < VOCAB
            values = tl.load(row + start + lanes, mask=inside, other=float("-inf"))
            peaks = tl.maximum(peaks, values.to(tl.float32))
        highest = tl.max(peaks, 0)

        least = 0
        total = tl.full([], 0.0, tl.float64)
        if (limit <= 0) & (share < 1.0):
            total = _mass(row, kept, 0, VOCAB, highest, heat, 0, BLOCK)
        if (limit > 0) | (share < 1.0):
            least = _first_bound(peaks, highest, heat, limit, share, total, VOCAB)
        elif fraction > 0.0:
            least = _bits(fraction)

        count = VOCAB
        gathered = 0
        if least > 0:
            found = _gather(row, kept, highest, heat, least, VOCAB, CAPACITY, BLOCK)
            gathered = (found >= 0).to(tl.int32)
            count = tl.where(found >= 0, found, VOCAB)

        if limit > 0:
            wanted = limit.to(tl.float64)
            least = _threshold(
                row, kept, gathered, count, highest, heat, least, wanted, True, BLOCK
            )
            if share < 1.0:
                total = _mass(row, kept, gathered, count, highest, heat, least, BLOCK)
        if share < 1.0:
            wanted = share * total
            least = _threshold(
                row, kept, gathered, count, highest, heat, least, wanted, False, BLOCK
            )
        if fraction > 0.0:
            least = tl.maximum(least, _bits(fraction))

        number = tl.load(uniform + index)
        token = _invert(row, kept, gathered, count, highest, heat, least, number, BLOCK)
        tl.store(tokens + index, tl.maximum(token, 0))


def draw_rows(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Overwrites, in rows with a temperature above 0, the token with one drawn as by
    ``sampling.draw.draw``; other rows keep theirs.

    logits: ``[rows, vocab]``, contiguous; temperature, top_p, min_p: float32 ``[rows]``; top_k:
    integers ``[rows]``, 0 for no limit; uniform: float64 ``[rows]`` in [0, 1); tokens: integers
    ``[rows]``. All on one device. Weights differ from torch's by a unit in the last place and sums
    by their order, so a token differs only where such rounding decides. A row that is not finite
    gets some token of the vocabulary.
    """
    rows, vocab = logits.shape
    if not rows:
        return
    scratch = tokens.new_empty(rows * _CAPACITY, dtype=torch.int32)
    _draw_rows[(rows,)](
        logits, temperature, top_k, top_p, min_p, uniform, tokens, scratch,
        VOCAB=vocab, CAPACITY=_CAPACITY, BLOCK=_BLOCK, num_warps=_WARPS, **launch_options(),
    )  # fmt: skip
