# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``decode_attention`` on Hopper: keys and values stream through a ring in shared memory.

There is one program for each SM. One warp of it keeps the ring full (TMA), through all items that
``stream_schedule`` gave to the program, the others multiply what has arrived (wgmma): the query
heads of a KV head, padded to the 64 rows of its left operand. Both read the same records in the
same order, so that they agree on what is in the ring without telling each other. No keys or values
are read before the kernel before has stored those of this step: a sequence may share a block that
another one fills in the same step. Not so in a step of single tokens (executor/step.h), where this
kernel stores them itself, see ``stream_new``: all that it reads is of earlier steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from slipstream.kernels.decode_schedule import FIELDS, DecodeSchedule
from slipstream.kernels.paged_common import (
    LOG2E,
    LOWEST,
    capped,
    first_visible,
    softmax_step,
)
from slipstream.kernels.qkv import Unprepared, scaled
from slipstream.kernels.stream_new import prepared, put_newest, unprepared

if TYPE_CHECKING:  # which imports this module
    from slipstream.kernels.paged_decode import DecodeWorkspace

_TILE_BYTES = 32 << 10  # keys and values
_STAGES = 6  # of an SM's 227 KiB 192: leaves some to the kernels before and after
_WARPS = 4
_REGISTERS = 136  # of a thread at the start; the producer leaves most of its own to the others
_PRODUCER_REGISTERS = 40
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@gluon.jit
def _blocks(
    table, position, begin, end, PER_BLOCK: gl.constexpr, BOX: gl.constexpr, BOXES: gl.constexpr
):
    """Those of a tile's boxes [BOXES], for each thread. A block that holds nothing from begin to
    end may be another sequence's, or none: the nearest that does is read in its place."""
    box = gl.arange(0, BOXES, gl.BlockedLayout([BOXES], [32], [1], [0]))
    seen = gl.minimum(gl.maximum(position + box * BOX, begin), end - 1)
    return gl.load(table + seen // PER_BLOCK)


@gluon.jit
def _fetch(
    pool, blocks, k_ring, v_ring, ready, stage, position, kv_head, KV_HEADS: gl.constexpr,
    PER_BLOCK: gl.constexpr, BOX: gl.constexpr, BOXES: gl.constexpr,
):  # fmt: skip
    """Starts the tile at ``position`` on its way."""
    bar = ready.index(stage)
    mbarrier.expect(bar, 2 * BOXES * BOX * pool.block_shape[1] * 2)
    box = gl.arange(0, BOXES, blocks.type.layout)
    for number in gl.static_range(BOXES):
        block = gl.sum(gl.where(box == number, blocks, 0), 0)
        key = (block * 2 * KV_HEADS + kv_head) * PER_BLOCK + position % PER_BLOCK
        value = key + KV_HEADS * PER_BLOCK
        keys = k_ring.index(stage).slice(number * BOX, BOX)
        values = v_ring.index(stage).slice(number * BOX, BOX)
        tma.async_copy_global_to_shared(pool, [key, 0], bar, keys)
        tma.async_copy_global_to_shared(pool, [value, 0], bar, values)


@gluon.jit
def _record(items, item, FIELDS: gl.constexpr):
    """Of an item its row, slot, end, KV head, first tile, the one to stop at, first item, parts."""
    record = items + item * FIELDS
    return (
        gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 3),
        gl.load(record + 4), gl.load(record + 5), gl.load(record + 6), gl.load(record + 7),
    )  # fmt: skip


@gluon.jit
def _produce(
    pool, block_tables, items, k_ring, v_ring, ready, empty, begun, first, last, table_stride,
    KV_HEADS: gl.constexpr, PER_BLOCK: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
    MASK: gl.constexpr, MASK_SIZE: gl.constexpr, FIELDS: gl.constexpr, WAITS: gl.constexpr,
):  # fmt: skip
    BOX: gl.constexpr = pool.block_shape[0]
    BOXES: gl.constexpr = TILE // BOX
    # Here, where only the threads of a warp have to wait for each other between them.
    for place in gl.static_range(STAGES):
        mbarrier.init(ready.index(place), count=1)
        mbarrier.init(empty.index(place), count=1)
    fence_async_shared()
    mbarrier.arrive(begun, count=1)
    # Tiles of the items before. Not counted in the loop over an item's: Triton 3.6 then takes one
    # of the values that the outer loop changes for one that stays (its pass loop-aware-cse).
    before = 0
    _, slot, end, kv_head, from_tile, to_tile, _, _ = _record(items, first, FIELDS)
    for item in range(first, last):
        begin = first_visible(end - 1, MASK, MASK_SIZE)
        table = block_tables + slot.to(gl.int64) * table_stride
        blocks = _blocks(table, from_tile * TILE, begin, end, PER_BLOCK, BOX, BOXES)
        # Records and blocks are read before they are needed, so that no fetch waits for them.
        following = _record(items, gl.minimum(item + 1, last - 1), FIELDS)
        if WAITS:
            if item == first:
                gdc_wait()
        for tile in range(from_tile, to_tile):
            position = tile * TILE
            current = blocks
            blocks = _blocks(table, position + TILE, begin, end, PER_BLOCK, BOX, BOXES)
            turn = before + tile - from_tile
            stage = turn % STAGES
            mbarrier.wait(empty.index(stage), (turn // STAGES - 1) & 1, pred=turn >= STAGES)
            _fetch(
                pool, current, k_ring, v_ring, ready, stage, position, kv_head,
                KV_HEADS, PER_BLOCK, BOX, BOXES,
            )  # fmt: skip
        before += to_tile - from_tile
        _, slot, end, kv_head, from_tile, to_tile, _, _ = following


@gluon.jit
def _hide(values, position, begin, end, WARPS: gl.constexpr):
    """Zeros values [positions, dim] outside of begin to end: a stale NaN times no weight is NaN."""
    TILE: gl.constexpr = values.shape[0]
    ACROSS: gl.constexpr = values.shape[1] // 8
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // ACROSS, ACROSS], [WARPS, 1], [1, 0])
    seen = position + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    loaded = values.load(layout)
    visible = ((seen >= begin) & (seen < end))[:, None]
    values.store(gl.where(visible, loaded, gl.zeros_like(loaded)))
    fence_async_shared()  # the tensor cores read past where threads write
    gl.thread_barrier()


@gluon.jit
def _combine(
    sums, stats, first_item, parts, out_row, kv_head, value_scale, GROUP: gl.constexpr,
    DIM: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Adds up ``parts``, several at a time and in their order, and writes the heads of one KV
    head."""
    MEMBERS: gl.constexpr = triton.next_power_of_2(GROUP)
    LANES: gl.constexpr = DIM // 4  # of a member
    AT_ONCE: gl.constexpr = max(MEMBERS, WARPS * 32 // LANES)
    SPLITS: gl.constexpr = max(1, 8192 // (AT_ONCE * DIM))  # 64 registers of each thread
    # Parts are a thread's own: it adds them up without the others.
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 1, 4], [1, 32 // LANES, LANES], [1, WARPS, 1], [2, 1, 0]
    )
    of_parts: gl.constexpr = gl.SliceLayout(2, layout)
    of_result: gl.constexpr = gl.SliceLayout(0, layout)
    of_members: gl.constexpr = gl.SliceLayout(0, of_parts)
    splits = gl.arange(0, SPLITS, gl.SliceLayout(1, of_parts))
    member = gl.arange(0, MEMBERS, of_members)
    dim = gl.arange(0, DIM, gl.SliceLayout(0, of_result))
    dims = gl.arange(0, DIM, gl.SliceLayout(0, gl.SliceLayout(1, layout)))
    maximum = gl.full([MEMBERS], LOWEST, gl.float32, of_members)
    total = gl.zeros([MEMBERS], gl.float32, of_members)
    summed = gl.zeros([MEMBERS, DIM], gl.float32, of_result)
    for split in range(0, parts, SPLITS):
        part = (first_item + split + splits)[:, None] * GROUP + member[None, :]
        present = (split + splits < parts)[:, None] & (member < GROUP)[None, :]
        # Past L1, which does not see what other SMs wrote.
        maxima = gl.load(stats + 2 * part, mask=present, other=LOWEST, cache_modifier=".cg")
        totals = gl.load(stats + 2 * part + 1, mask=present, other=1.0, cache_modifier=".cg")
        place = gl.expand_dims(part.to(gl.int64) * DIM, 2) + dims[None, None, :]
        there = gl.expand_dims(present, 2)
        values = gl.load(sums + place, mask=there, other=0.0, cache_modifier=".cg")
        new_maximum = gl.maximum(maximum, gl.max(maxima, 0))
        weights = gl.exp2(maxima - new_maximum[None, :])
        shrink = gl.exp2(maximum - new_maximum)
        total = total * shrink + gl.sum(weights * totals, 0)
        shrink_rows = gl.convert_layout(shrink, gl.SliceLayout(1, of_result))
        summed = summed * shrink_rows[:, None] + gl.sum(gl.expand_dims(weights, 2) * values, 0)
        maximum = new_maximum
    total_rows = gl.convert_layout(total, gl.SliceLayout(1, of_result))
    result = (summed / total_rows[:, None] * value_scale).to(out_row.dtype.element_ty)
    of_group = gl.arange(0, MEMBERS, gl.SliceLayout(1, of_result))
    place = out_row + (kv_head * GROUP + of_group)[:, None] * DIM + dim[None, :]
    gl.store(place, result, mask=(of_group < GROUP)[:, None])


@gluon.jit
def _used_rows(scores, HALF: gl.constexpr):
    """Of the 16 rows of scores [rows, columns] that a warp has, the first eight if HALF: those a
    thread has alone, so that nothing moves."""
    if HALF:
        columns: gl.constexpr = scores.shape[1]
        pairs = scores.reshape([scores.shape[0] // 16, 2, 8, columns]).permute((0, 2, 3, 1))
        used, _ = pairs.split()
        scores = used.reshape([scores.shape[0] // 2, columns])
    return scores


@gluon.jit
def _all_rows(used, others, HALF: gl.constexpr):
    """What ``_used_rows`` has taken apart, of matrices or columns; the other rows are given."""
    if HALF:
        rows: gl.constexpr = used.shape[0]
        pairs = gl.join(used, others)
        if len(used.shape) == 2:
            pairs = pairs.reshape([rows // 8, 8, used.shape[1], 2]).permute((0, 3, 1, 2))
            used = pairs.reshape([rows * 2, used.shape[1]])
        else:
            used = pairs.reshape([rows // 8, 8, 2]).permute((0, 2, 1)).reshape([rows * 2])
    return used


@gluon.jit
def _consume(
    q, out, sinks, items, sums, stats, arrivals, k_ring, v_ring, ready, empty, begun, first, last,
    inner, factor, value_scale, q_token_stride, q_head_stride, cache, write_slots, cos, sin, q_norm,
    k_norm, q_factor, eps, GROUP: gl.constexpr, KV_HEADS: gl.constexpr, PER_BLOCK: gl.constexpr,
    STAGES: gl.constexpr, MASK: gl.constexpr, MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr,
    SINKS: gl.constexpr, FIELDS: gl.constexpr, PDL: gl.constexpr, WARPS: gl.constexpr,
    NEW: gl.constexpr, ROTATED: gl.constexpr, INTERLEAVED: gl.constexpr, NORM: gl.constexpr,
    FACTOR: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = 16 * WARPS
    TILE: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE, 16])
    of_sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, DIM, 16])
    as_query: gl.constexpr = gl.DotOperandLayout(0, of_scores, 2)
    as_weights: gl.constexpr = gl.DotOperandLayout(0, of_sums, 2)
    HALF: gl.constexpr = GROUP <= 8
    nothing = gl.zeros([ROWS, TILE], gl.float32, of_scores)
    of_used: gl.constexpr = _used_rows(nothing, HALF).type.layout
    USED: gl.constexpr = ROWS // 2 if HALF else ROWS
    member = gl.arange(0, USED, gl.SliceLayout(1, of_used))
    place = gl.arange(0, TILE, gl.SliceLayout(0, of_used))
    query_row = gl.arange(0, ROWS, gl.SliceLayout(1, as_query))
    query_dim = gl.arange(0, DIM, gl.SliceLayout(0, as_query))
    out_row = gl.arange(0, ROWS, gl.SliceLayout(1, of_sums))
    out_dim = gl.arange(0, DIM, gl.SliceLayout(0, of_sums))
    written = (out_row < GROUP)[:, None]
    if NEW:
        no_query = _used_rows(gl.zeros([ROWS, DIM], q.dtype.element_ty, as_query), HALF)
        used_row = gl.arange(0, USED, gl.SliceLayout(1, no_query.type.layout))
        used_dim = gl.arange(0, DIM, gl.SliceLayout(0, no_query.type.layout))
        of_newest: gl.constexpr = gl.BlockedLayout([1, DIM // 16], [2, 16], [WARPS, 1], [1, 0])
        copy = gl.arange(0, 2 * WARPS, gl.SliceLayout(1, of_newest))[:, None]
        new_dim = gl.arange(0, DIM, gl.SliceLayout(0, of_newest))
    mbarrier.wait(begun, 0)
    if PDL:
        gdc_wait()
    before = 0
    token, _, end, kv_head, from_tile, to_tile, first_item, parts = _record(items, first, FIELDS)
    for item in range(first, last):
        row = token.to(gl.int64)
        begin = first_visible(end - 1, MASK, MASK_SIZE)
        if NEW:
            of_token = q + row * q_token_stride
            queries = of_token + (kv_head * GROUP + used_row)[:, None] * q_head_stride
            in_group = (used_row < GROUP)[:, None]
            raw_query = unprepared(
                queries, in_group, used_dim, cos, sin, row, ROTATED, INTERLEAVED, 2
            )
            # The newest token's: several copies of it, see ``put_newest``. All is asked for before
            # any of it is waited for.
            key_head = of_token + (KV_HEADS * GROUP + kv_head + copy * 0) * q_head_stride
            raw_key = unprepared(
                key_head, copy >= 0, new_dim, cos, sin, row, ROTATED, INTERLEAVED, DIM // 16
            )
            value = gl.load(key_head + KV_HEADS * q_head_stride + new_dim[None, :])
            slot = gl.load(write_slots + row)
            following = _record(items, gl.minimum(item + 1, last - 1), FIELDS)
            query = prepared(
                raw_query, in_group, used_dim, q_norm, eps, ROTATED, INTERLEAVED, NORM, 2
            )
            if FACTOR:
                query = scaled(query, gl.load(q_factor + row))
            query = gl.convert_layout(_all_rows(query, gl.zeros_like(query), HALF), as_query)
            key = prepared(
                raw_key, copy >= 0, new_dim, k_norm, eps, ROTATED, INTERLEAVED, NORM, DIM // 16
            )
            cached = (slot // PER_BLOCK * 2 * KV_HEADS + kv_head) * PER_BLOCK + slot % PER_BLOCK
            cached = cache + cached * DIM + copy * 0 + new_dim[None, :]
            stored = (copy == 0) & (slot >= 0) & (to_tile * TILE >= end)
            gl.store(cached, key, mask=stored)
            gl.store(cached + KV_HEADS * PER_BLOCK * DIM, value, mask=stored)
        else:
            queries = q + row * q_token_stride
            queries += (kv_head * GROUP + query_row)[:, None] * q_head_stride
            in_group = (query_row < GROUP)[:, None]
            query = gl.load(queries + query_dim[None, :], mask=in_group, other=0.0)
            following = _record(items, gl.minimum(item + 1, last - 1), FIELDS)
        maximum = gl.full([USED], LOWEST, gl.float32, gl.SliceLayout(1, of_used))
        total = gl.zeros([USED], gl.float32, gl.SliceLayout(1, of_used))
        if SINKS:
            if item == first_item:
                heads = sinks + kv_head * GROUP + member
                sink = gl.load(heads, mask=member < GROUP, other=0.0).to(gl.float32)
                maximum = gl.maximum(sink * LOG2E, LOWEST)
                total = gl.exp2(sink * LOG2E - maximum)
        summed = gl.zeros([ROWS, DIM], gl.float32, of_sums)

        stage = before % STAGES
        mbarrier.wait(ready.index(stage), before // STAGES & 1)
        if NEW:
            if from_tile * TILE + TILE >= end:
                at = end - 1 - from_tile * TILE
                put_newest(k_ring.index(stage), v_ring.index(stage), at, key, value)
        keys = k_ring.index(stage).permute((1, 0))
        raw_ahead = warpgroup_mma(query, keys, nothing, use_acc=False, is_async=True)
        raw_ahead = warpgroup_mma_wait(0, deps=(raw_ahead,))
        for tile in range(from_tile, to_tile):
            turn = before + tile - from_tile  # see _produce
            stage = turn % STAGES
            values = v_ring.index(stage)
            raw = capped(_used_rows(raw_ahead, HALF), inner, SOFT_CAP)
            turn += 1
            # The next tile's scores, while this one's are worked on. After an item's last tile they
            # are of whatever is there, and not looked at.
            ahead = turn % STAGES
            mbarrier.wait(ready.index(ahead), turn // STAGES & 1, pred=tile + 1 < to_tile)
            if NEW:
                if (tile + 1 < to_tile) & ((tile + 2) * TILE >= end):
                    at = end - 1 - (tile + 1) * TILE
                    put_newest(k_ring.index(ahead), v_ring.index(ahead), at, key, value)
            keys = k_ring.index(ahead).permute((1, 0))
            raw_ahead = warpgroup_mma(query, keys, nothing, use_acc=False, is_async=True)
            position = tile * TILE
            if (position < begin) | (position + TILE > end):
                _hide(values, position, begin, end, WARPS)
                visible = (position + place >= begin) & (position + place < end)
                raw = gl.where(visible[None, :], raw, float("-inf"))
            weights, shrink, maximum, total = softmax_step(raw, factor, maximum, total)
            shrink = _all_rows(shrink, gl.full_like(shrink, 1.0), HALF)
            shrink = gl.convert_layout(shrink, gl.SliceLayout(1, of_sums))
            weights = weights.to(query.dtype)
            weights = _all_rows(weights, gl.zeros_like(weights), HALF)
            weights = gl.convert_layout(weights, as_weights)
            summed = warpgroup_mma(weights, values, summed * shrink[:, None], is_async=True)
            summed, raw_ahead = warpgroup_mma_wait(0, deps=(summed, raw_ahead))
            gl.thread_barrier()  # all warps have read; one thread says so
            mbarrier.arrive(empty.index(stage), count=1)

        result_row = out + row * (KV_HEADS * GROUP * DIM)
        if parts == 1:
            totals = _all_rows(total, gl.full_like(total, 1.0), HALF)
            totals = gl.convert_layout(totals, gl.SliceLayout(1, of_sums))
            result = (summed / totals[:, None] * value_scale).to(out.dtype.element_ty)
            head = (kv_head * GROUP + out_row)[:, None]
            gl.store(result_row + head * DIM + out_dim[None, :], result, mask=written)
        else:
            part = item * GROUP + member
            gl.store(stats + 2 * part, maximum, mask=member < GROUP)
            gl.store(stats + 2 * part + 1, total, mask=member < GROUP)
            part_row = (item * GROUP + out_row).to(gl.int64)[:, None] * DIM
            gl.store(sums + part_row + out_dim[None, :], summed, mask=written)
            # Every thread's part must be written before the one that counts announces it.
            gl.thread_barrier()
            if gl.atomic_add(arrivals + first_item, 1, sem="acq_rel") == parts - 1:
                gl.store(arrivals + first_item, 0)  # for the next launch
                _combine(
                    sums, stats, first_item, parts, result_row, kv_head, value_scale,
                    GROUP, DIM, WARPS,
                )  # fmt: skip
        before += to_tile - from_tile
        token, _, end, kv_head, from_tile, to_tile, first_item, parts = following


@gluon.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_tables"],
)
def _stream_decode(
    q, pool, block_tables, out, sinks, items, programs, sums, stats, arrivals, inner, factor,
    value_scale, q_token_stride, q_head_stride, table_stride, cache, write_slots, cos, sin, q_norm,
    k_norm, q_factor, eps, GROUP: gl.constexpr, KV_HEADS: gl.constexpr, PER_BLOCK: gl.constexpr,
    TILE: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr, SINKS: gl.constexpr, FIELDS: gl.constexpr,
    PDL: gl.constexpr, NEW: gl.constexpr, ROTATED: gl.constexpr, INTERLEAVED: gl.constexpr,
    NORM: gl.constexpr, FACTOR: gl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    WARPS: gl.constexpr = gl.num_warps()
    DIM: gl.constexpr = pool.block_shape[1]
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE, DIM], pool.dtype)
    k_ring = gl.allocate_shared_memory(pool.dtype, [STAGES, TILE, DIM], layout)
    v_ring = gl.allocate_shared_memory(pool.dtype, [STAGES, TILE, DIM], layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    begun = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(begun, count=1)
    fence_async_shared()
    gl.thread_barrier()
    first = gl.load(programs + 2 * gl.program_id(0))
    last = gl.load(programs + 2 * gl.program_id(0) + 1)
    gl.warp_specialize(
        [
            (_consume, (
                q, out, sinks, items, sums, stats, arrivals, k_ring, v_ring, ready, empty, begun,
                first, last, inner, factor, value_scale, q_token_stride, q_head_stride, cache,
                write_slots, cos, sin, q_norm, k_norm, q_factor, eps, GROUP, KV_HEADS, PER_BLOCK,
                STAGES, MASK, MASK_SIZE, SOFT_CAP, SINKS, FIELDS, PDL, WARPS, NEW, ROTATED,
                INTERLEAVED, NORM, FACTOR,
            )),
            (_produce, (
                pool, block_tables, items, k_ring, v_ring, ready, empty, begun, first, last,
                table_stride, KV_HEADS, PER_BLOCK, TILE, STAGES, MASK, MASK_SIZE, FIELDS,
                PDL and not NEW,
            )),
        ],
        [1],
        [REGISTERS],
    )  # fmt: skip


def _descriptor(pool: torch.Tensor, tile: int) -> TensorDescriptor:
    """Of the rows of a pool, in boxes of a tile or, where those are smaller, of a block."""
    per_block, head_dim = pool.shape[3:]
    shape = [pool.numel() // head_dim, head_dim]
    box = [min(tile, per_block), head_dim]
    layout = NVMMASharedLayout.get_default_for(box, _DTYPES[pool.dtype])
    return TensorDescriptor(pool.view(shape), shape, [head_dim, 1], box, layout)


def _of_new(new: Unprepared | None, pool: torch.Tensor) -> tuple[Any, ...]:
    """The kernel's arguments from ``cache`` to ``eps``."""
    if new is None:
        return (*[None] * 7, 0.0)
    return (
        pool, new.write_slots, new.cos, new.sin, new.q_norm, new.k_norm, new.q_factor, new.eps,
    )  # fmt: skip


def _compiled_for_new(new: Unprepared | None) -> dict[str, Any]:
    if new is None:
        return {"NEW": False, "ROTATED": 0, "INTERLEAVED": False, "NORM": "", "FACTOR": False}
    assert (new.cos is None) == (new.sin is None)
    assert (new.q_norm is None) == (new.k_norm is None)
    norm = "" if new.q_norm is None else "after" if new.norm_after_rope else "before"
    return {
        "NEW": True,
        "ROTATED": 0 if new.cos is None else new.cos.shape[-1],
        "INTERLEAVED": new.style == "interleaved",
        "NORM": norm,
        "FACTOR": new.q_factor is not None,
    }


def launch_stream_decode(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    sinks: torch.Tensor | None,
    schedule: DecodeSchedule,
    workspace: DecodeWorkspace,
    inner: float,
    factor: float,
    value_scale: float,
    *,
    tile: int,
    compiled_for: dict[str, Any],
    new: Unprepared | None = None,
) -> None:
    """``decode_attention``, which calls this, where ``streams_decode``.

    schedule: one with programs. inner, factor: see ``scoring``. compiled_for: by ``compile_time``.
    new: see ``decode_attention``.
    """
    assert schedule.programs is not None
    assert pool.dtype == q.dtype
    assert tile * pool.shape[4] * 4 == _TILE_BYTES
    others = ("HEAD_DIM", "DIM", "PRECISION")  # constants of the other kernels
    _stream_decode[(schedule.running,)](
        q, _descriptor(pool, tile), block_tables, out, sinks, schedule.items, schedule.programs,
        workspace.sums, workspace.stats, workspace.arrivals, inner, factor, value_scale,
        q.stride(0), q.stride(1), block_tables.stride(0),
        *_of_new(new, pool),
        TILE=tile,
        STAGES=_STAGES,
        REGISTERS=_PRODUCER_REGISTERS,
        FIELDS=FIELDS,
        num_warps=_WARPS,
        maxnreg=_REGISTERS,
        **_compiled_for_new(new),
        **{name: value for name, value in compiled_for.items() if name not in others},
    )  # fmt: skip
