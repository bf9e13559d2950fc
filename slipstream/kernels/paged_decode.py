# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention of single tokens over a paged KV cache: one pass over the keys and values.

The query heads of a KV head are the rows of a tile, so that KV is read once. A sequence's positions
are shared out among up to ``num_splits`` programs; the last of them to finish adds up their parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs
from slipstream.kernels.paged_common import (
    LOG2E,
    LOWEST,
    MaskKind,
    capped,
    check_layout,
    compile_time,
    first_visible,
    key_rows,
    load_blocks,
    load_rows,
    scoring,
    softmax_step,
)

_PROGRAMS_PER_SM = 3  # that their shared memory lets run at a time
_FULL = 128  # programs that give every SM of a large GPU work
_MAX_SPLITS = 128  # the last program reads the parts of all


class DecodeTuning(NamedTuple):
    tile: int  # positions
    warps: int
    stages: int


def _tuning(head_dim: int, dtype: torch.dtype) -> DecodeTuning:
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    if row_bytes <= 256:
        return DecodeTuning(64, 4, 3)
    return DecodeTuning(64, 4, 2) if row_bytes <= 512 else DecodeTuning(32, 8, 2)


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """What the programs of a split sequence hand to each other; one launch at a time may use it.

    sums: float32, weighted values. stats: float32, maxima and totals. arrivals: int32, zero
    between launches.
    """

    sums: torch.Tensor
    stats: torch.Tensor
    arrivals: torch.Tensor


def decode_workspace(
    n: int, heads: int, head_dim: int, num_splits: int, device: torch.device
) -> DecodeWorkspace:
    """For launches of up to ``n`` rows whose ``n * num_splits`` is no greater than here."""
    parts = n * heads * num_splits
    return DecodeWorkspace(
        torch.empty(parts * head_dim, dtype=torch.float32, device=device),
        torch.empty(2 * parts, dtype=torch.float32, device=device),
        torch.zeros(n * heads, dtype=torch.int32, device=device),
    )


def choose_splits(n: int, kv_heads: int, num_sms: int, max_positions: int) -> int:
    """Into how many parts to cut sequences of up to ``max_positions``, ``n`` of them in a batch.

    As many as run at a time, so that all finish together. Once every SM has work, no more than
    even out the last wave: each part costs the batch writing and reading it again.
    """
    slots, pairs = num_sms * _PROGRAMS_PER_SM, n * kv_heads
    longest = min(_MAX_SPLITS, -(-max_positions // 64))
    if 2 * pairs <= slots:
        return max(1, min(slots // pairs, longest))
    if pairs >= 2 * slots:
        return 1
    waves = {splits: -(-pairs * splits // slots) / splits for splits in range(1, 5)}
    best = min(waves, key=lambda splits: waves[splits] + 0.05 * splits)
    return min(best, longest)


def decode_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    *,
    scale: float,
    mask_kind: MaskKind,
    mask_size: int,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    num_splits: int,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Attends from one token of each sequence to what its mask shows of it, its own KV stored.

    q: ``[tokens, heads, head_dim]``, unit stride in the last dimension. pool: ``[num_blocks, 2,
    kv_heads, tokens_per_block, head_dim]``, keys before values. block_tables: int32
    ``[max_num_seqs, max_blocks]``. rows: int32 ``[n]``, each sequence's row of q, positions and
    out, or -1, which does nothing. slots: int32 ``[n]``, its row of block_tables. positions: int32
    ``[tokens]``. out: ``[tokens, heads * head_dim]``; only ``rows`` are written. sinks:
    ``[heads]``. mask_kind, mask_size, soft_cap: see ScoreSpec. Reads nothing on the host.

    pool: q's dtype or float8_e4m3fn. Its keys are taken times key_scale, its values times
    value_scale.

    rows, slots, positions and block_tables must have been written before a kernel that is not
    launched as a dependent one (see ``overlap``): those are read while the kernel before still
    runs.
    """
    check_layout(q, pool, out)
    kv_heads, head_dim = pool.shape[2], pool.shape[4]
    heads, n = q.shape[1], rows.shape[0]
    assert n * num_splits * heads * 2 <= workspace.stats.numel(), "the workspace is too small"
    assert n * kv_heads <= workspace.arrivals.numel(), "the workspace is too small"
    inner, factor = scoring(scale * key_scale, soft_cap)
    tuning = _tuning(head_dim, q.dtype)
    # A part has to be worth writing and reading it again, unless SMs would be idle without it.
    least_tiles, free_parts = (20, 1) if n * kv_heads >= _FULL else (16, 16)
    _decode[(n, kv_heads, num_splits)](
        q, pool, block_tables, rows, slots, positions, out, sinks,
        workspace.sums, workspace.stats, workspace.arrivals, inner, factor, value_scale,
        q.stride(0), q.stride(1), least_tiles, free_parts, block_tables.stride(0),
        ROWS=max(16, triton.next_power_of_2(heads // kv_heads)),
        TILE=tuning.tile,
        SPLIT=num_splits > 1,
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        **compile_time(q, pool, mask_kind, mask_size, soft_cap, sinks),
    )  # fmt: skip


# Integers may be slices of one buffer: how they lie in it must not choose among compiled kernels.
_INTEGERS = ["block_tables", "rows", "slots", "positions"]


@triton.jit(
    do_not_specialize=["table_stride", "least_tiles", "free_parts"],
    do_not_specialize_on_alignment=_INTEGERS,
)
def _decode(
    q,
    pool,
    block_tables,
    rows,
    slots,
    positions,
    out,
    sinks,
    sums,
    stats,
    arrivals,
    inner,
    factor,
    value_scale,
    q_token_stride,
    q_head_stride,
    least_tiles,
    free_parts,
    table_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_SIZE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    # Where things are is known since the step began (see ``decode_attention``), so these reads,
    # each of which needs the one before, are over when the queries and the last keys are there.
    index, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(rows + index)
    slot = tl.where(row < 0, 0, tl.load(slots + index))  # of padding it may be anything
    end = tl.load(positions + tl.maximum(row, 0)) + 1
    begin = first_visible(end - 1, MASK, MASK_SIZE)
    first = begin // TILE
    tiles = tl.cdiv(end, TILE) - first
    worth = tl.maximum(tiles // least_tiles, free_parts)
    working = tl.minimum(tl.minimum(tiles, tl.num_programs(2)), worth)
    table = block_tables + slot.to(tl.int64) * table_stride
    from_tile = first + split * tiles // working
    to_tile = first + (split + 1) * tiles // working
    blocks = load_blocks(table, from_tile * TILE, end, TILE, PER_BLOCK)
    await_inputs(PDL)
    if row < 0 or split >= working:
        return

    member, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    head = kv_head * GROUP + member
    queries = q + row.to(tl.int64) * q_token_stride + head * q_head_stride
    query = load_rows(queries, member < GROUP, dim, True, HEAD_DIM, q.dtype.element_ty)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS and split == 0:
        sink = tl.load(sinks + head, mask=member < GROUP, other=0.0).to(tl.float32)
        maximum = tl.maximum(sink * LOG2E, LOWEST)
        total = tl.exp2(sink * LOG2E - maximum)
    summed = tl.zeros([ROWS, DIM], tl.float32)

    for tile in range(from_tile, to_tile):
        position = tile * TILE
        seen = position + tl.arange(0, TILE)
        visible = (seen >= begin) & (seen < end)
        keys = key_rows(pool, blocks, position, kv_head, TILE, PER_BLOCK, KV_HEADS, HEAD_DIM)
        blocks = load_blocks(table, position + TILE, end, TILE, PER_BLOCK)
        key = load_rows(keys, visible, dim, True, HEAD_DIM, query.dtype)
        values = keys + KV_HEADS * PER_BLOCK * HEAD_DIM
        value = load_rows(values, visible, dim, True, HEAD_DIM, query.dtype)
        raw = capped(tl.dot(query, key.T, input_precision=PRECISION), inner, SOFT_CAP)
        raw = tl.where(visible[None, :], raw, float("-inf"))
        weights, shrink, maximum, total = softmax_step(raw, factor, maximum, total)
        summed = tl.dot(
            weights.to(value.dtype), value, summed * shrink[:, None], input_precision=PRECISION
        )

    out_row = out + row.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM)
    written = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    if SPLIT and working > 1:
        pair = index * KV_HEADS + kv_head
        part = (pair * tl.num_programs(2) + split) * GROUP + member
        tl.store(stats + 2 * part, maximum, mask=member < GROUP)
        tl.store(stats + 2 * part + 1, total, mask=member < GROUP)
        sum_rows = sums + part.to(tl.int64) * HEAD_DIM
        tl.store(sum_rows[:, None] + dim[None, :], summed, mask=written)
        # Every thread's part must be written before the one that counts announces it.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == working - 1:
            tl.store(arrivals + pair, 0)  # for the next launch
            first_part = pair * tl.num_programs(2) * GROUP
            _combine(
                sums, stats, first_part, working, out_row, kv_head, value_scale,
                GROUP, HEAD_DIM, DIM,
            )  # fmt: skip
        return
    result = (summed / total[:, None] * value_scale).to(out.dtype.element_ty)
    tl.store(out_row + head[:, None] * HEAD_DIM + dim[None, :], result, mask=written)


@triton.jit
def _combine(
    sums,
    stats,
    first_part,
    working,
    out_row,
    kv_head,
    value_scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """Adds up ``working`` parts, several at a time, and writes the heads of one KV head."""
    MEMBERS: tl.constexpr = triton.next_power_of_2(GROUP)
    SPLITS: tl.constexpr = max(1, 8192 // (MEMBERS * DIM))  # 64 registers of each thread
    member, dim = tl.arange(0, MEMBERS), tl.arange(0, DIM)
    maximum = tl.full([MEMBERS], LOWEST, tl.float32)
    total = tl.zeros([MEMBERS], tl.float32)
    summed = tl.zeros([MEMBERS, DIM], tl.float32)
    real = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    for split in range(0, working, SPLITS):
        splits = split + tl.arange(0, SPLITS)
        part = first_part + splits[:, None] * GROUP + member[None, :]
        present = (splits < working)[:, None] & (member < GROUP)[None, :]
        # Written by other SMs: this one's first-level cache may hold what was there before.
        maxima = tl.load(stats + 2 * part, mask=present, other=LOWEST, cache_modifier=".cg")
        totals = tl.load(stats + 2 * part + 1, mask=present, other=1.0, cache_modifier=".cg")
        parts = tl.load(
            sums + part.to(tl.int64)[:, :, None] * HEAD_DIM + dim[None, None, :],
            mask=present[:, :, None] & real[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
        weights = tl.exp2(maxima - new_maximum[None, :])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights * totals, 0)
        summed = summed * shrink[:, None] + tl.sum(weights[:, :, None] * parts, 0)
        maximum = new_maximum
    result = (summed / total[:, None] * value_scale).to(out_row.dtype.element_ty)
    head = kv_head * GROUP + member
    tl.store(out_row + head[:, None] * HEAD_DIM + dim[None, :], result, mask=real)
