# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Experts: pairs of a token and an expert, sorted by expert, and matrix products of each segment.

How many rows an expert has is known on the device alone. A product is launched for the most blocks
of rows that there can be; each program finds its expert, and those past the last block end at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options
from slipstream.kernels.paged_common import precision


class Sorted(NamedTuple):
    """Pairs by expert. order: int32 ``[pairs]``, the pair of each row; ends: int32 ``[experts]``,
    where each expert's rows end; counts: int32 ``[experts]``."""

    order: torch.Tensor
    ends: torch.Tensor
    counts: torch.Tensor


def sort_pairs(experts: torch.Tensor, num_experts: int, load: torch.Tensor | None = None) -> Sorted:
    """experts: int ``[tokens, top_k]``; pairs of one expert stay in their order. load: int64
    ``[num_experts]``, which the counts are added to."""
    pairs = experts.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=experts.device)
    ends = torch.empty((2, num_experts), dtype=torch.int32, device=experts.device)
    _sort_pairs[(num_experts,)](
        experts,
        order,
        ends[0],
        ends[1],
        load,
        pairs,
        BLOCK=min(triton.next_power_of_2(pairs), 2048),
        LOADED=load is not None,
        **launch_options(),
    )
    return Sorted(order, ends[0], ends[1])


def gate_up_product(
    x: torch.Tensor,
    pairs: Sorted,
    top_k: int,
    matrices: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    *,
    clamped: bool,
    alpha: float,
    limit: float,
) -> torch.Tensor:
    """The activated inner vectors, ``[pairs, inner]`` in sorted order.

    x: ``[tokens, hidden]``; matrices: ``[experts, 2 * inner, hidden]``, gates first; bias:
    ``[experts, 2 * inner]``; weights: ``[tokens, top_k]``, which multiply the tokens. The
    activation is that of ExpertsSpec.
    """
    inner = matrices.shape[1] // 2
    out = x.new_empty((pairs.order.shape[0], inner))
    _launch(
        x, pairs, top_k, matrices, bias, weights, out, inner,
        gated=True, clamped=clamped, alpha=alpha, limit=limit,
    )  # fmt: skip
    return out


def down_product(
    rows: torch.Tensor, pairs: Sorted, matrices: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """rows: ``[pairs, inner]`` in sorted order; matrices: ``[experts, hidden, inner]``; bias:
    ``[experts, hidden]``. Returns ``[pairs, hidden]`` in the order of pairs, token by token."""
    out = rows.new_empty((rows.shape[0], matrices.shape[1]))
    _launch(
        rows, pairs, 0, matrices, bias, None, out, matrices.shape[1],
        gated=False, clamped=False, alpha=0.0, limit=0.0,
    )  # fmt: skip
    return out


class _Tuning(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def _tuning(rows_of_expert: float, itemsize: int) -> _Tuning:
    if itemsize > 2:
        return _Tuning(16, 32, 32, 4, 2)
    if rows_of_expert <= 16:
        return _Tuning(16, 64, 128, 4, 3)
    if rows_of_expert <= 64:
        return _Tuning(64, 64, 64, 4, 3)
    return _Tuning(128, 128, 64, 8, 3)


def _launch(
    x: torch.Tensor,
    pairs: Sorted,
    top_k: int,
    matrices: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    out: torch.Tensor,
    columns: int,
    *,
    gated: bool,
    clamped: bool,
    alpha: float,
    limit: float,
) -> None:
    num_pairs, num_experts = pairs.order.shape[0], matrices.shape[0]
    tuning = _tuning(num_pairs / num_experts, x.dtype.itemsize)
    blocks = min(num_pairs, num_experts) + num_pairs // tuning.rows
    wide = tuning.columns // 2 if gated and tuning.columns > 64 else tuning.columns
    _product[(triton.cdiv(columns, wide), blocks)](
        x,
        matrices,
        bias,
        weights,
        out,
        pairs.order,
        pairs.ends,
        pairs.counts,
        matrices.shape[2],
        columns,
        alpha,
        limit,
        EXPERTS=num_experts,
        EXPERT_BLOCK=triton.next_power_of_2(num_experts),
        TOP_K=top_k,
        GATED=gated,
        CLAMPED=clamped,
        BIAS=bias is not None,
        WEIGHED=weights is not None,
        ROWS=tuning.rows,
        COLUMNS=wide,
        DEPTH=tuning.depth,
        PRECISION=precision(x.dtype),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        **launch_options(),
    )


@triton.jit(do_not_specialize=["pairs"])
def _sort_pairs(
    experts, order, ends, counts, load, pairs,
    BLOCK: tl.constexpr, LOADED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program an expert: it counts what comes before its rows and then numbers them."""
    await_inputs(PDL)
    mine = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        chosen = tl.load(experts + pair, pair < pairs, other=2147483647)
        before += (chosen < mine).to(tl.int32)
    row = tl.sum(before)
    first = row
    for start in range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        chosen = tl.load(experts + pair, pair < pairs, other=2147483647)
        is_mine = chosen == mine
        place = row + tl.cumsum(is_mine.to(tl.int32)) - 1
        tl.store(order + place, pair, is_mine)
        row += tl.sum(is_mine.to(tl.int32))
    tl.store(ends + mine, row)
    tl.store(counts + mine, row - first)
    if LOADED:
        tl.store(load + mine, tl.load(load + mine) + row - first)


@triton.jit
def _product(
    x,
    matrices,
    bias,
    weights,
    out,
    order,
    ends,
    counts,
    depth,
    columns,
    alpha,
    limit,
    EXPERTS: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    GATED: tl.constexpr,
    CLAMPED: tl.constexpr,
    BIAS: tl.constexpr,
    WEIGHED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    # Blocks of rows, expert by expert; programs of one block of rows lie next to each other.
    block = tl.program_id(1)
    expert = tl.arange(0, EXPERT_BLOCK)
    count = tl.load(counts + expert, expert < EXPERTS, other=0)
    blocks = (count + ROWS - 1) // ROWS
    upto = tl.cumsum(blocks)
    mine = tl.sum((upto <= block).to(tl.int32))
    if mine >= EXPERTS:
        return
    is_mine = expert == mine
    within = block - tl.sum(tl.where(is_mine, upto - blocks, 0))
    end = tl.load(ends + mine)
    first = end - tl.sum(tl.where(is_mine, count, 0)) + within * ROWS

    row = first + tl.arange(0, ROWS)
    real = row < end
    pair = tl.load(order + row, real, other=0)
    if GATED:
        source = pair // TOP_K
    else:
        source = row
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    height = columns
    if GATED:
        height = 2 * columns
    at = tl.arange(0, DEPTH)
    left = x + source.to(tl.int64)[:, None] * depth + at[None, :]
    matrix = matrices + mine.to(tl.int64) * height * depth
    right = matrix + column.to(tl.int64)[None, :] * depth + at[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    upper = tl.zeros([ROWS, COLUMNS], tl.float32)
    if WEIGHED:
        factor = tl.load(weights + pair, real, other=0.0)
    for start in range(0, depth, DEPTH):
        deep = at < depth - start
        a = tl.load(left + start, real[:, None] & deep[None, :], other=0.0)
        if WEIGHED:
            a = (a.to(tl.float32) * factor.to(tl.float32)[:, None]).to(x.dtype.element_ty)
        mask = deep[:, None] & inside[None, :]
        b = tl.load(right + start, mask, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        if GATED:
            c = tl.load(right + start + columns * depth, mask, other=0.0)
            upper = tl.dot(a, c, upper, input_precision=PRECISION)
    dtype = out.dtype.element_ty
    # Rounded where separate operations would round.
    value = total.to(dtype).to(tl.float32)
    if BIAS:
        own = tl.load(bias + mine * height + column, inside, other=0.0).to(tl.float32)
        value = (value + own[None, :]).to(dtype).to(tl.float32)
    if GATED:
        up = upper.to(dtype).to(tl.float32)
        if BIAS:
            own = tl.load(bias + mine * height + columns + column, inside, other=0.0)
            up = (up + own.to(tl.float32)[None, :]).to(dtype).to(tl.float32)
        if CLAMPED:
            gate = tl.minimum(value, limit)
            up = tl.minimum(tl.maximum(up, -limit), limit)
            value = gate * tl.sigmoid(gate * alpha) * (up + 1.0)
        else:
            value = (value * tl.sigmoid(value)).to(dtype).to(tl.float32) * up
        target = row
    else:
        target = pair
    place = out + target.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, value.to(dtype), real[:, None] & inside[None, :])
