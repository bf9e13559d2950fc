# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention of single tokens over a paged KV cache: one pass over the keys and values.

The query heads of a KV head are the rows of a tile, so that KV is read once. ``decode_schedule``
says which tiles a program reads; where several read a sequence, the last of them to finish adds up
their parts, in their order. On Hopper ``stream_decode`` does the same faster, but for the largest
batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from slipstream.kernels.decode_schedule import FIELDS, DecodeSchedule
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
from slipstream.kernels.qkv import Unprepared
from slipstream.kernels.skinny_linear import streams

_MOST_PAIRS = 6  # of a sequence and a KV head, for each SM


def streams_decode(heads: int, pool: torch.Tensor) -> bool:
    """Whether ``stream_decode`` serves so many query heads on a pool as of ``decode_attention``."""
    kv_heads, per_block, head_dim = pool.shape[2:]
    return (
        streams(pool.device)
        and pool.dtype in (torch.bfloat16, torch.float16)
        and head_dim in (64, 128)
        and per_block >= 16
        and heads // kv_heads <= 64
        and pool.numel() // head_dim < 2**31
    )


def most_streamed(kv_heads: int, num_sms: int) -> int:
    """Sequences up to which ``stream_decode`` was the faster one. With more the programs of the
    other are so many that few of them begin or end at a time, which is what costs it time."""
    return _MOST_PAIRS * num_sms // kv_heads


def decode_tile(head_dim: int, streamed: bool) -> int:
    """Positions that a program reads at a time. streamed: of ``stream_decode``, whose tiles are
    32 KiB of keys and values."""
    if streamed:
        return 8192 // head_dim
    return 64 if head_dim <= 128 else 32


def decode_programs(num_sms: int, streamed: bool) -> int:
    """How many run at a time, for their shared memory."""
    return num_sms if streamed else 3 * num_sms


def _launch_options(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """dtype: of queries."""
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    tile_bytes = row_bytes * decode_tile(head_dim, False)
    return {
        "num_warps": 4 if row_bytes <= 512 else 8,
        "num_stages": 3 if tile_bytes <= 16384 else 2,
    }


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """What the programs of a cut sequence hand to each other; one launch at a time may use it.

    sums: float32, weighted values. stats: float32, maxima and totals. arrivals: int32, zero
    between launches.
    """

    sums: torch.Tensor
    stats: torch.Tensor
    arrivals: torch.Tensor


def decode_workspace(schedule: DecodeSchedule, heads: int, head_dim: int) -> DecodeWorkspace:
    """For launches with a schedule of that size."""
    items, device = schedule.items.shape[0], schedule.items.device
    parts = items * (heads // schedule.kv_heads)
    return DecodeWorkspace(
        torch.empty(parts * head_dim, dtype=torch.float32, device=device),
        torch.empty(2 * parts, dtype=torch.float32, device=device),
        torch.zeros(items, dtype=torch.int32, device=device),
    )


def decode_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    workspace: DecodeWorkspace,
    schedule: DecodeSchedule,
    *,
    n: int,
    scale: float,
    mask_kind: MaskKind,
    mask_size: int,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    new: Unprepared | None = None,
) -> None:
    """Attends from one token of each sequence to what its mask shows of it, its own KV stored.

    q: ``[tokens, heads, head_dim]``, unit stride in the last dimension. pool: ``[num_blocks, 2,
    kv_heads, tokens_per_block, head_dim]``, keys before values. block_tables: int32
    ``[max_num_seqs, max_blocks]``. schedule: of the ``n`` sequences, padding included, by
    ``schedule_decodes`` with the same mask; it says by which kernel, and may be a streamed one
    where ``streams_decode``. out: ``[tokens, heads * head_dim]``; only their rows are written.
    sinks: ``[heads]``. mask_kind, mask_size, soft_cap: see ScoreSpec. Reads nothing on the host.

    pool: q's dtype or float8_e4m3fn. Its keys are taken times key_scale, its values times
    value_scale.

    new: does the work of ``prepare_qkv`` for the sequences' tokens as well. Their KV is not stored
    yet, no other sequence of these has the block that it goes to, and q is the leading heads of a
    qkv as of there, whose queries stay as they were. Only with a streamed schedule.

    block_tables and schedule must have been written before a kernel that is not launched as a
    dependent one (see ``overlap``): those are read while the kernel before still runs.
    """
    check_layout(q, pool, out)
    kv_heads, head_dim = pool.shape[2], pool.shape[4]
    heads = q.shape[1]
    items = schedule.most_items(n)
    assert schedule.kv_heads == kv_heads
    assert items <= schedule.items.shape[0], "the schedule is too small"
    assert items * (heads // kv_heads) * head_dim <= workspace.sums.numel()
    inner, factor = scoring(scale * key_scale, soft_cap)
    tile = decode_tile(head_dim, schedule.streamed)
    compiled_for = compile_time(q, pool, mask_kind, mask_size, soft_cap, sinks)
    if schedule.streamed:
        from slipstream.kernels.stream_decode import launch_stream_decode

        launch_stream_decode(
            q, pool, block_tables, out, sinks, schedule, workspace, inner, factor, value_scale,
            tile=tile, compiled_for=compiled_for, new=new,
        )  # fmt: skip
        return
    assert new is None, "only streamed decodes prepare queries and keys"
    _decode[(items,)](
        q, pool, block_tables, out, sinks, schedule.items,
        workspace.sums, workspace.stats, workspace.arrivals, inner, factor, value_scale,
        q.stride(0), q.stride(1), block_tables.stride(0),
        ROWS=max(16, triton.next_power_of_2(heads // kv_heads)),
        TILE=tile,
        FIELDS=FIELDS,
        **_launch_options(head_dim, q.dtype),
        **compiled_for,
    )  # fmt: skip


# It may be a slice of another: how that lies must not choose among compiled kernels.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_tables"],
)
def _decode(
    q,
    pool,
    block_tables,
    out,
    sinks,
    items,
    sums,
    stats,
    arrivals,
    inner,
    factor,
    value_scale,
    q_token_stride,
    q_head_stride,
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
    FIELDS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    # Where things are is known since the step began (see ``decode_attention``), so these reads,
    # each of which needs the one before, are over when the queries and the last keys are there.
    item = tl.program_id(0)
    record = items + item * FIELDS
    row = tl.load(record)
    slot = tl.load(record + 1)
    end = tl.load(record + 2)
    kv_head = tl.load(record + 3)
    from_tile = tl.load(record + 4)
    to_tile = tl.load(record + 5)
    first_item = tl.load(record + 6)
    parts = tl.load(record + 7)
    table = block_tables + slot.to(tl.int64) * table_stride
    blocks = load_blocks(table, from_tile * TILE, end, TILE, PER_BLOCK)
    await_inputs(PDL)
    if parts == 0:
        return

    begin = first_visible(end - 1, MASK, MASK_SIZE)
    member, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    head = kv_head * GROUP + member
    queries = q + row.to(tl.int64) * q_token_stride + head * q_head_stride
    query = load_rows(queries, member < GROUP, dim, True, HEAD_DIM, q.dtype.element_ty)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS and item == first_item:
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
    if parts == 1:
        result = (summed / total[:, None] * value_scale).to(out.dtype.element_ty)
        tl.store(out_row + head[:, None] * HEAD_DIM + dim[None, :], result, mask=written)
    else:
        part = item * GROUP + member
        tl.store(stats + 2 * part, maximum, mask=member < GROUP)
        tl.store(stats + 2 * part + 1, total, mask=member < GROUP)
        sum_rows = sums + part.to(tl.int64) * HEAD_DIM
        tl.store(sum_rows[:, None] + dim[None, :], summed, mask=written)
        # Every thread's part must be written before the one that counts announces it.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + first_item, 1, sem="acq_rel") == parts - 1:
            tl.store(arrivals + first_item, 0)  # for the next launch
            _combine(
                sums, stats, first_item * GROUP, parts, out_row, kv_head, value_scale,
                GROUP, HEAD_DIM, DIM,
            )  # fmt: skip


@triton.jit
def _combine(
    sums,
    stats,
    first_part,
    parts,
    out_row,
    kv_head,
    value_scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """Adds up ``parts``, several at a time, and writes the heads of one KV head."""
    MEMBERS: tl.constexpr = triton.next_power_of_2(GROUP)
    SPLITS: tl.constexpr = max(1, 8192 // (MEMBERS * DIM))  # 64 registers of each thread
    member, dim = tl.arange(0, MEMBERS), tl.arange(0, DIM)
    maximum = tl.full([MEMBERS], LOWEST, tl.float32)
    total = tl.zeros([MEMBERS], tl.float32)
    summed = tl.zeros([MEMBERS, DIM], tl.float32)
    real = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    for split in range(0, parts, SPLITS):
        splits = split + tl.arange(0, SPLITS)
        part = first_part + splits[:, None] * GROUP + member[None, :]
        present = (splits < parts)[:, None] & (member < GROUP)[None, :]
        # Written by other SMs: this one's first-level cache may hold what was there before.
        maxima = tl.load(stats + 2 * part, mask=present, other=LOWEST, cache_modifier=".cg")
        totals = tl.load(stats + 2 * part + 1, mask=present, other=1.0, cache_modifier=".cg")
        values = tl.load(
            sums + part.to(tl.int64)[:, :, None] * HEAD_DIM + dim[None, None, :],
            mask=present[:, :, None] & real[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
        weights = tl.exp2(maxima - new_maximum[None, :])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(weights * totals, 0)
        summed = summed * shrink[:, None] + tl.sum(weights[:, :, None] * values, 0)
        maximum = new_maximum
    result = (summed / total[:, None] * value_scale).to(out_row.dtype.element_ty)
    head = kv_head * GROUP + member
    tl.store(out_row + head[:, None] * HEAD_DIM + dim[None, :], result, mask=real)
