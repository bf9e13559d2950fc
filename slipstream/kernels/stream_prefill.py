# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``prefill_attention`` on Hopper: keys and values stream through rings in shared memory.

There is one program for each SM. One warp of it keeps the rings full (TMA), through all items that
are the program's: a tile of rows and a KV head. Two groups of four warps have half of an item's
rows each and multiply (wgmma) in turns: while one computes weights, the tensor cores serve the
other. Either multiplies the keys of a tile before the values of the tile before.

An item walks its positions backwards: those on the diagonal, which need a mask, come first. Its
first keys are multiplied beside the last values of the item before.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from slipstream.kernels.paged_common import LOG2E, LOWEST, capped, first_visible
from slipstream.kernels.stream_prefill_tiles import (
    HALF,
    WIDTH,
    await_queries,
    fetch_queries,
    item_of_turn,
    opaque,
    own_positions,
    produce_tiles,
    tiles_seen,
)

_ROWS = 128  # of an item: tokens times heads
_TILE = 128  # positions
_STAGES = 2  # of either ring
# Of a thread: at the start, of the warps that multiply, and of the one that loads. An SM's 65,536
# are 168 for each of twelve warps.
_REGISTERS = 168
_CONSUMER_REGISTERS = 232
_PRODUCER_REGISTERS = 40
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
_WARPS = gl.constexpr(4)  # of a group


@gluon.jit
def _weigh(
    raw, tile, own, maximum, total, inner, factor, dtype: gl.constexpr, MASKED: gl.constexpr,
    MASK: gl.constexpr, MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr,
):  # fmt: skip
    """``softmax_step`` of a tile's scores, masked or not, by columns in pairs.

    Its weights are rounded, two in an integer: loops carry 32 bits better than 16.
    """
    raw = capped(raw, inner, SOFT_CAP)
    if MASKED:
        TILE: gl.constexpr = raw.shape[1]
        seen = tile * TILE + gl.arange(0, TILE, gl.SliceLayout(0, raw.type.layout))
        visible = seen[None, :] <= own[:, None]
        if MASK != "full":
            earliest = first_visible(own, MASK, MASK_SIZE)
            visible = visible & (seen[None, :] >= earliest[:, None])
        raw = gl.where(visible, raw, float("-inf"))
    even, odd = raw.reshape([raw.shape[0], raw.shape[1] // 2, 2]).split()
    layout: gl.constexpr = maximum.type.layout
    highest = gl.convert_layout(gl.max(gl.maximum(even, odd), 1), layout)
    new_maximum = gl.maximum(maximum, highest * factor)
    subtracted = gl.convert_layout(new_maximum, gl.SliceLayout(1, even.type.layout))[:, None]
    even = gl.exp2(even * factor - subtracted)
    odd = gl.exp2(odd * factor - subtracted)
    shrink = gl.exp2(maximum - new_maximum)
    total = total * shrink + gl.convert_layout(gl.sum(even + odd, 1), layout)
    kind: gl.constexpr = "bf16x2" if dtype == gl.bfloat16 else "f16x2"
    convert: gl.constexpr = "cvt.rn." + kind + ".f32 $0, $2, $1;"
    packed = gl.inline_asm_elementwise(convert, "=r,r,r", [even, odd], gl.int32, True, 1)
    return packed, shrink, new_maximum, total


@gluon.jit
def _unpacked(packed, dtype: gl.constexpr, LAYOUT: gl.constexpr):
    """Weights as the left operand."""
    unpack: gl.constexpr = "mov.b32 {$0, $1}, $2;"
    if dtype == gl.bfloat16:
        even, odd = gl.inline_asm_elementwise(
            unpack, "=h,=h,r", [packed], (gl.bfloat16, gl.bfloat16), True, 1
        )
    else:
        even, odd = gl.inline_asm_elementwise(
            unpack, "=h,=h,r", [packed], (gl.float16, gl.float16), True, 1
        )
    weights = gl.join(even, odd).reshape([packed.shape[0], packed.shape[1] * 2])
    return gl.convert_layout(weights, LAYOUT)


@gluon.jit
def _await_turn(order, turn, GROUP_OF_WARPS: gl.constexpr):
    """Until the other group has given its products of this turn (the second), or of the turn
    before (the first, which need not wait in the very first turn), to the tensor cores."""
    mbarrier.wait(order.index(GROUP_OF_WARPS), (turn + 1 - GROUP_OF_WARPS) & 1)


@gluon.jit
def _release(bar):
    gl.thread_barrier()  # all warps have read; one thread says so
    mbarrier.arrive(bar, count=1)


@gluon.jit
def _multiply(
    queries, weights, summed, turn, rings, GROUP_OF_WARPS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The scores of a turn's keys, and the sums with the values of the turn before, whose weights
    are given; these are still under way."""
    k_ring, v_ring, k_ready, k_empty, v_ready, _, order = rings
    TILE: gl.constexpr = k_ring.shape[1]
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, TILE, 16])
    as_weights: gl.constexpr = gl.DotOperandLayout(0, summed.type.layout, 2)
    place = turn % STAGES
    before = (turn - 1) % STAGES
    keys = k_ring.index(place).permute((1, 0))
    raw = gl.zeros([HALF, TILE], gl.float32, of_scores)
    mbarrier.wait(k_ready.index(place), turn // STAGES & 1)
    _await_turn(order, turn, GROUP_OF_WARPS)
    raw = warpgroup_mma(queries, keys, raw, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(before), (turn - 1) // STAGES & 1)
    rounded = _unpacked(weights, k_ring.dtype, as_weights)
    summed = warpgroup_mma(rounded, v_ring.index(before), summed, is_async=True)
    mbarrier.arrive(order.index(1 - GROUP_OF_WARPS), count=1)
    raw = warpgroup_mma_wait(1, deps=(raw,))
    _release(k_empty.index(place))
    return raw, summed


@gluon.jit
def _await_sums(summed, weights, turn, rings, STAGES: gl.constexpr):
    """Until ``_multiply`` has added up; weights: of this turn, computed in the meantime."""
    _, _, _, _, v_ready, v_empty, _ = rings
    before = (turn - 1) % STAGES
    # Passed before, and so again at once, but the compiler moves nothing past it: the weights are
    # computed before the wait below.
    mbarrier.wait(v_ready.index(before), (turn - 1) // STAGES & 1)
    summed, weights = warpgroup_mma_wait(0, deps=(summed, weights))
    _release(v_empty.index(before))
    return summed, weights


@gluon.jit
def _walk(
    q_places, q_place, weights, summed, maximum, total, own, first_step, last_step, used, last,
    inner, factor, rings, GROUP_OF_WARPS: gl.constexpr, MASKED: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Steps of an item: keys of a tile, and values of the one before, whose weights are given."""
    queries = q_places.index(opaque(q_place))  # descriptors of this walk's own
    for step in range(first_step, last_step):
        turn = used + step
        raw, summed = _multiply(queries, weights, summed, turn, rings, GROUP_OF_WARPS, STAGES)
        weights, shrink, maximum, total = _weigh(
            raw, last - step, own, maximum, total, inner, factor, rings[0].dtype, MASKED, MASK,
            MASK_SIZE, SOFT_CAP,
        )  # fmt: skip
        summed, weights = _await_sums(summed, weights, turn, rings, STAGES)
        summed = summed * gl.convert_layout(shrink, gl.SliceLayout(1, summed.type.layout))[:, None]
    return weights, summed, maximum, total


@gluon.jit
def _weigh_first(
    raw, sinks, size, position, kv_head, inner, factor, dtype: gl.constexpr,
    GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr, SINKS: gl.constexpr,
):  # fmt: skip
    """The first scores of half an item: weights, maxima and totals."""
    layout: gl.constexpr = gl.SliceLayout(1, raw.type.layout)
    own = own_positions(position, size, GROUP_OF_WARPS, GROUP, layout)
    maximum = gl.full([HALF], LOWEST, gl.float32, layout)
    total = gl.zeros([HALF], gl.float32, layout)
    if SINKS:
        pair = GROUP_OF_WARPS * HALF + gl.arange(0, HALF, layout)
        sink = gl.load(sinks + kv_head * GROUP + pair % GROUP).to(gl.float32)
        maximum = gl.maximum(sink * LOG2E, LOWEST)
        total = gl.exp2(sink * LOG2E - maximum)
    last = (position + size - 1) // raw.shape[1]
    weights, _, maximum, total = _weigh(
        raw, last, own, maximum, total, inner, factor, dtype, True, MASK, MASK_SIZE, SOFT_CAP
    )
    return weights, maximum, total


@gluon.jit
def _begin(
    queries, sinks, size, position, kv_head, used, inner, factor, rings,
    GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr, SINKS: gl.constexpr,
):  # fmt: skip
    """The first scores of half an item with no item before it."""
    k_ring, _, k_ready, k_empty, _, _, order = rings
    TILE: gl.constexpr = k_ring.shape[1]
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, TILE, 16])
    place = used % STAGES
    keys = k_ring.index(place).permute((1, 0))
    raw = gl.zeros([HALF, TILE], gl.float32, of_scores)
    mbarrier.wait(k_ready.index(place), used // STAGES & 1)
    _await_turn(order, used, GROUP_OF_WARPS)
    raw = warpgroup_mma(queries, keys, raw, use_acc=False, is_async=True)
    mbarrier.arrive(order.index(1 - GROUP_OF_WARPS), count=1)
    raw = warpgroup_mma_wait(0, deps=(raw,))
    _release(k_empty.index(place))
    return _weigh_first(
        raw, sinks, size, position, kv_head, inner, factor, k_ring.dtype, GROUP_OF_WARPS, GROUP,
        MASK, MASK_SIZE, SOFT_CAP, SINKS,
    )  # fmt: skip


@gluon.jit
def _end_and_begin(
    next_queries, sinks, weights, summed, size, position, kv_head, turn, inner, factor, rings,
    GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr, SINKS: gl.constexpr,
):  # fmt: skip
    """A step of two items: the first keys of the next, and the last values of this.

    size, position, kv_head: of the next. turn: of its keys.
    """
    raw, summed = _multiply(next_queries, weights, summed, turn, rings, GROUP_OF_WARPS, STAGES)
    weights, maximum, total = _weigh_first(
        raw, sinks, size, position, kv_head, inner, factor, rings[0].dtype, GROUP_OF_WARPS, GROUP,
        MASK, MASK_SIZE, SOFT_CAP, SINKS,
    )  # fmt: skip
    summed, weights = _await_sums(summed, weights, turn, rings, STAGES)
    return summed, weights, maximum, total


@gluon.jit
def _end(weights, summed, turn, rings, STAGES: gl.constexpr):
    """The last values of an item with none after it. turn: that of its last keys."""
    _, v_ring, _, _, v_ready, v_empty, _ = rings
    place = turn % STAGES
    mbarrier.wait(v_ready.index(place), turn // STAGES & 1)
    rounded = _unpacked(weights, v_ring.dtype, gl.DotOperandLayout(0, summed.type.layout, 2))
    summed = warpgroup_mma(rounded, v_ring.index(place), summed, is_async=True)
    summed = warpgroup_mma_wait(0, deps=(summed,))
    _release(v_empty.index(place))
    return summed


@gluon.jit
def _middle(
    q_places, q_place, weights, maximum, total, size, position, used, inner, factor, rings,
    GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, SOFT_CAP: gl.constexpr,
):  # fmt: skip
    """Half an item but for its first keys and last values."""
    TILE: gl.constexpr = rings[0].shape[1]
    DIM: gl.constexpr = rings[0].shape[2]
    of_sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, DIM, 16])
    layout: gl.constexpr = maximum.type.layout
    own = own_positions(position, size, GROUP_OF_WARPS, GROUP, layout)
    summed = gl.zeros([HALF, DIM], gl.float32, of_sums)
    last, count = tiles_seen(position, size, TILE, MASK, MASK_SIZE)
    # The steps from which on tiles need no mask, and again need one, on the mask's other edge.
    end = position + size
    open_from = gl.maximum(last + 1 - (position + 1) // TILE, 1)
    edge_from = last + 1 - gl.cdiv(first_visible(end - 1, MASK, MASK_SIZE), TILE)
    edge_from = gl.maximum(open_from, gl.minimum(edge_from, count))
    for stretch in gl.static_range(3):
        if stretch == 0:
            first_step, last_step = 1, gl.minimum(open_from, count)
        elif stretch == 1:
            first_step, last_step = open_from, edge_from
        else:
            first_step, last_step = edge_from, count
        if stretch < 2 or MASK != "full":
            weights, summed, maximum, total = _walk(
                q_places, q_place, weights, summed, maximum, total, own, first_step, last_step,
                used, last, inner, factor, rings, GROUP_OF_WARPS, stretch != 1, MASK, MASK_SIZE,
                SOFT_CAP, STAGES,
            )  # fmt: skip
    return weights, summed, total


@gluon.jit
def _store(
    summed, total, queries, out, row, size, kv_head, value_scale, GROUP_OF_WARPS: gl.constexpr,
    GROUP: gl.constexpr, KV_HEADS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Half an item's result, through the place of its queries, for whole rows."""
    DIM: gl.constexpr = summed.shape[1]
    shares = gl.convert_layout(value_scale / total, gl.SliceLayout(1, summed.type.layout))
    queries.store((summed * shares[:, None]).to(out.dtype.element_ty))
    gl.thread_barrier()
    pair = GROUP_OF_WARPS * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
    out_row = (row + pair // GROUP).to(gl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP
    result = out + (out_row + pair % GROUP)[:, None] * DIM + dim[None, :]
    gl.store(result, queries.load(LAYOUT), mask=(pair < size * GROUP)[:, None])


@gluon.jit
def _consume(
    q, out, sinks, lists, turns, inner, factor, value_scale, token_stride, head_stride, q_places,
    rings, GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, KV_HEADS: gl.constexpr,
    TOKENS: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr, MASK_SIZE: gl.constexpr,
    SOFT_CAP: gl.constexpr, SINKS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Half of all items of the program."""
    TILE: gl.constexpr = rings[0].shape[1]
    DIM: gl.constexpr = rings[0].shape[2]
    # Threads read and write 16 bytes each of global memory.
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [_WARPS, 1], [1, 0])
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, TILE, 16])
    used = 0  # tiles of positions, of all turns so far
    row, size, position, _, kv_head = item_of_turn(0, lists, KV_HEADS, TOKENS)
    following = item_of_turn(1, lists, KV_HEADS, TOKENS)
    next_row, next_size, next_position, _, next_head = following
    # Of the item at hand, where the one before has begun it.
    begun = 0
    nothing = gl.zeros([HALF, TILE], gl.float32, of_scores)
    pairs, other_pairs = nothing.reshape([HALF, TILE // 2, 2]).split()
    weights = pairs.to(gl.int32)
    maximum = gl.zeros([HALF], gl.float32, gl.SliceLayout(1, of_scores))
    total = maximum
    if PDL:
        gdc_wait()
    fetch_queries(
        q, q_places.index(GROUP_OF_WARPS), row, size, kv_head, token_stride, head_stride,
        GROUP_OF_WARPS, GROUP, DIM, layout,
    )  # fmt: skip
    await_queries()
    for turn in range(turns):
        q_place = turn % 2 * 2 + GROUP_OF_WARPS
        next_queries = q_places.index((turn + 1) % 2 * 2 + GROUP_OF_WARPS)
        fetch_queries(
            q, next_queries, next_row, next_size, next_head, token_stride, head_stride,
            GROUP_OF_WARPS, GROUP, DIM, layout,
        )  # fmt: skip
        following = item_of_turn(turn + 2, lists, KV_HEADS, TOKENS)
        _, count = tiles_seen(position, size, TILE, MASK, MASK_SIZE)
        begins = (count > 0) & (next_size > 0)
        if count > 0:
            if begun == 0:
                weights, maximum, total = _begin(
                    q_places.index(q_place), sinks, size, position, kv_head, used, inner, factor,
                    rings, GROUP_OF_WARPS, GROUP, STAGES, MASK, MASK_SIZE, SOFT_CAP, SINKS,
                )  # fmt: skip
            weights, summed, totals = _middle(
                q_places, q_place, weights, maximum, total, size, position, used, inner, factor,
                rings, GROUP_OF_WARPS, GROUP, STAGES, MASK, MASK_SIZE, SOFT_CAP,
            )  # fmt: skip
            await_queries()
            if begins:
                summed, weights, maximum, total = _end_and_begin(
                    next_queries, sinks, weights, summed, next_size, next_position, next_head,
                    used + count, inner, factor, rings, GROUP_OF_WARPS, GROUP, STAGES, MASK,
                    MASK_SIZE, SOFT_CAP, SINKS,
                )  # fmt: skip
            else:
                summed = _end(weights, summed, used + count - 1, rings, STAGES)
            _store(
                summed, totals, q_places.index(q_place), out, row, size, kv_head, value_scale,
                GROUP_OF_WARPS, GROUP, KV_HEADS, layout,
            )  # fmt: skip
        await_queries()  # and until nobody reads what _store has left in the next ones' place
        begun = begins.to(gl.int32)
        used += count
        row, size, position, kv_head = next_row, next_size, next_position, next_head
        next_row, next_size, next_position, _, next_head = following


# Integers may be slices of one buffer: how they lie in it must not choose among compiled kernels.
_INTEGERS = ["block_tables", "tile_rows", "tile_sizes", "tile_slots", "positions"]


@gluon.jit(
    do_not_specialize=["table_stride", "tiles", "turns"],
    do_not_specialize_on_alignment=_INTEGERS,
)
def _stream_prefill(
    q, pool, block_tables, tile_rows, tile_sizes, tile_slots, positions, out, sinks, tiles, turns,
    inner, factor, value_scale, token_stride, head_stride, table_stride, GROUP: gl.constexpr,
    KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, DIM: gl.constexpr, PER_BLOCK: gl.constexpr,
    TILE: gl.constexpr, STAGES: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr, MASK: gl.constexpr, MASK_SIZE: gl.constexpr,
    SOFT_CAP: gl.constexpr, SINKS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    BOX: gl.constexpr = pool.block_shape[0]
    BOXES: gl.constexpr = STAGES * (DIM // WIDTH) * (TILE // BOX)
    layout: gl.constexpr = pool.layout
    # Of two items, of each for both groups of warps.
    q_places = gl.allocate_shared_memory(pool.dtype, [4, HALF, DIM], layout)
    # Boxes of 64 dimensions lie one after the other as the halves of a tile's rows do.
    k_boxes = gl.allocate_shared_memory(pool.dtype, [BOXES, BOX, WIDTH], layout)
    v_boxes = gl.allocate_shared_memory(pool.dtype, [BOXES, BOX, WIDTH], layout)
    k_ring = k_boxes._reinterpret(pool.dtype, [STAGES, TILE, DIM], layout)
    v_ring = v_boxes._reinterpret(pool.dtype, [STAGES, TILE, DIM], layout)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    landed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(place), count=1)
        mbarrier.init(v_ready.index(place), count=1)
        mbarrier.init(k_empty.index(place), count=2)  # both groups of warps have read
        mbarrier.init(v_empty.index(place), count=2)
    mbarrier.init(order.index(0), count=1)
    mbarrier.init(order.index(1), count=1)
    mbarrier.init(landed, count=1)
    fence_async_shared()
    gl.thread_barrier()
    lists = (tile_rows, tile_sizes, tile_slots, positions, tiles)
    rings = (k_ring, v_ring, k_ready, k_empty, v_ready, v_empty, order)
    gl.warp_specialize(
        [
            (_consume, (
                q, out, sinks, lists, turns, inner, factor, value_scale, token_stride, head_stride,
                q_places, rings, 0, GROUP, KV_HEADS, TOKENS, STAGES, MASK, MASK_SIZE, SOFT_CAP,
                SINKS, PDL,
            )),
            (_consume, (
                q, out, sinks, lists, turns, inner, factor, value_scale, token_stride, head_stride,
                q_places, rings, 1, GROUP, KV_HEADS, TOKENS, STAGES, MASK, MASK_SIZE, SOFT_CAP,
                SINKS, PDL,
            )),
            (produce_tiles, (
                pool, block_tables, lists, turns, table_stride, k_boxes, v_boxes, k_ready, k_empty,
                v_ready, v_empty, landed, KV_HEADS, TOKENS, DIM, PER_BLOCK, TILE, STAGES, MASK,
                MASK_SIZE, PDL,
            )),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def _descriptor(pool: torch.Tensor, tile: int) -> TensorDescriptor:
    """Of the rows of a pool, in boxes of 64 dimensions of a tile's positions that lie together."""
    head_dim = pool.shape[4]
    shape, box = [pool.numel() // head_dim, head_dim], [min(tile, pool.shape[3]), 64]
    layout = NVMMASharedLayout.get_default_for(box, _DTYPES[pool.dtype])
    return TensorDescriptor(pool, shape, [head_dim, 1], box, layout)


def launch_stream_prefill(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    tile_rows: torch.Tensor,
    tile_sizes: torch.Tensor,
    tile_slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    sinks: torch.Tensor | None,
    inner: float,
    factor: float,
    value_scale: float,
    *,
    compiled_for: dict[str, Any],
) -> None:
    """``prefill_attention``, which calls this, where ``streams_prefill``.

    inner, factor: see ``scoring``. compiled_for: by ``compile_time``.
    """
    tiles, kv_heads = tile_rows.shape[0], pool.shape[2]
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    programs = min(processors, tiles * kv_heads)
    others = ("HEAD_DIM", "PRECISION")  # constants of the other kernels
    _stream_prefill[(programs,)](
        q, _descriptor(pool, _TILE), block_tables, tile_rows, tile_sizes, tile_slots, positions,
        out, sinks, tiles, triton.cdiv(tiles * kv_heads, programs), inner, factor, value_scale,
        q.stride(0), q.stride(1), block_tables.stride(0),
        TOKENS=_ROWS // (q.shape[1] // kv_heads),
        TILE=_TILE,
        STAGES=_STAGES,
        CONSUMER_REGISTERS=_CONSUMER_REGISTERS,
        PRODUCER_REGISTERS=_PRODUCER_REGISTERS,
        num_warps=4,
        maxnreg=_REGISTERS,
        **{name: value for name, value in compiled_for.items() if name not in others},
    )  # fmt: skip
