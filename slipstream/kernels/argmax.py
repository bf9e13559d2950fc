# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of a batch, and whether its logits are finite."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

_BLOCK = 2048  # logits that a program reads at a time
_PROGRAMS = 1024  # eight an SM of an H200: enough reads in flight for all its bandwidth
_MAX_SPLITS = 64


@triton.jit
def _best(values, ids):
    """The maximum and its first index."""
    highest = tl.max(values, 0)
    return highest, tl.min(tl.where(values == highest, ids, 0x7FFFFFFF), 0)


@triton.jit
def _greedy(
    logits, tokens, finite, part_values, part_ids, arrivals,
    VOCAB: tl.constexpr, SHARE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    values = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = split * SHARE + lanes
    good = tl.full([BLOCK], 1, tl.int1)
    for start in range(0, SHARE, BLOCK):
        columns = split * SHARE + start + lanes
        inside = columns < VOCAB
        found = tl.load(logits + row * VOCAB + columns, mask=inside, other=0.0).to(tl.float32)
        good &= tl.abs(found) < float("inf")  # not so for NaN either
        better = inside & (found > values)
        values = tl.where(better, found, values)
        ids = tl.where(better, columns, ids)
    highest, token = _best(values, ids)
    all_good = tl.min(good.to(tl.int32), 0)
    if SPLITS == 1:
        tl.store(tokens + row, token)
        tl.store(finite + row, all_good)
    else:
        place = row * SPLITS + split
        tl.store(part_values + place, tl.where(all_good != 0, highest, float("nan")))
        tl.store(part_ids + place, token)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(arrivals + row, 0)
            parts = row * SPLITS + tl.arange(0, SPLITS)
            # Past L1, which does not see what other SMs wrote.
            highs = tl.load(part_values + parts, cache_modifier=".cg")
            firsts = tl.load(part_ids + parts, cache_modifier=".cg")
            known = highs == highs
            _, first = _best(tl.where(known, highs, float("-inf")), firsts)
            tl.store(tokens + row, first)
            tl.store(finite + row, tl.min(known.to(tl.int32), 0))


def greedy(
    logits: torch.Tensor, tokens: torch.Tensor, finite: torch.Tensor, arrivals: torch.Tensor
) -> None:
    """Writes each row's first index of the maximum, and 1 if all of the row is finite, else 0.

    logits: ``[rows, vocab]``, contiguous. tokens, finite: ``[rows]``, integers of any size; the
    token of a row that is not finite is in the vocabulary, but means nothing. arrivals: int32,
    at least ``[rows]``, the caller's: zero before the first call, and zero again after each. Two
    calls that may run at once need two of them.
    """
    rows, vocab = logits.shape
    if not rows:
        return
    blocks = triton.cdiv(vocab, _BLOCK)
    wanted = min(max(_PROGRAMS // rows, 1), _MAX_SPLITS, blocks)
    splits = triton.next_power_of_2(wanted)
    share = triton.cdiv(blocks, splits) * _BLOCK
    part_values = logits.new_empty(rows * splits, dtype=torch.float32)
    part_ids = tokens.new_empty(rows * splits, dtype=torch.int32)
    _greedy[(rows, splits)](
        logits, tokens, finite, part_values, part_ids, arrivals,
        VOCAB=vocab, SHARE=share, SPLITS=splits, BLOCK=_BLOCK, num_warps=4, **launch_options(),
    )  # fmt: skip
