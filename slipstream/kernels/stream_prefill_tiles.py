# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a program of ``stream_prefill`` does, item by item, and how it comes to shared memory.

Keys and values of a tile of positions come in boxes, as far as a block's rows lie together.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.language.extra.cuda import gdc_wait

from slipstream.kernels.paged_common import first_visible

WIDTH = gl.constexpr(64)  # dimensions of a box: the 128 bytes that one swizzle covers
HALF = gl.constexpr(64)  # rows of an item that one group of warps has


@gluon.jit
def item_of_turn(turn, lists, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr):
    """What a program does in its ``turn``: first row, tokens, first position, slot and KV head.

    Tiles come in their order, each for all heads in turn. Programs take one each, then one each in
    reverse: who had the longest gets the shortest. No tokens: nothing to do.
    """
    tile_rows, tile_sizes, tile_slots, positions, tiles = lists
    programs = gl.num_programs(0)
    place = gl.program_id(0)
    if turn % 2 == 1:
        place = programs - 1 - place
    item = turn * programs + place
    tile = item // KV_HEADS
    inside = tile < tiles
    row = gl.load(tile_rows + tile, mask=inside, other=-1)
    size = gl.minimum(gl.load(tile_sizes + tile, mask=inside, other=0), TOKENS)
    slot = gl.load(tile_slots + tile, mask=inside & (row >= 0), other=0)
    position = gl.load(positions + row, mask=row >= 0, other=0)
    if row < 0:
        size = 0
    return row, gl.maximum(size, 0), position, slot, item % KV_HEADS


@gluon.jit
def tiles_seen(position, size, TILE: gl.constexpr, MASK: gl.constexpr, MASK_SIZE: gl.constexpr):
    """Tiles of positions that ``size`` tokens from ``position`` on see: the last, and how many."""
    last = (position + size - 1) // TILE
    count = last + 1 - first_visible(position, MASK, MASK_SIZE) // TILE
    if size == 0:
        count = 0
    return last, count


@gluon.jit
def own_positions(
    position, size, GROUP_OF_WARPS: gl.constexpr, GROUP: gl.constexpr, LAYOUT: gl.constexpr
):
    """Of half an item's rows, the last token's for those past its tokens."""
    pair = GROUP_OF_WARPS * HALF + gl.arange(0, HALF, LAYOUT)
    return position + gl.minimum(pair // GROUP, size - 1)


@gluon.jit
def _box_rows(
    table, tile, kv_head, low, end, KV_HEADS: gl.constexpr, PER_BLOCK: gl.constexpr,
    TILE: gl.constexpr, BOX: gl.constexpr,
):  # fmt: skip
    """Rows of the pool where the keys of each box of a tile begin.

    Below zero for boxes without a position from low to end, whose blocks may not exist: the copy
    reads nothing there, and fills in zeros.
    """
    rows = ()
    for box in gl.static_range(TILE // BOX):
        position = tile * TILE + box * BOX
        real = (position < end) & (position + BOX > low)
        block = gl.load(table + position // PER_BLOCK, mask=real, other=0)
        row = (block * (2 * KV_HEADS) + kv_head) * PER_BLOCK + position % PER_BLOCK
        if not real:
            row = -BOX - KV_HEADS * PER_BLOCK  # that of its values as well
        rows = rows + (row,)  # type: ignore[assignment]
    return rows


@gluon.jit
def _fetch(pool, rows, offset, ring, place, bar, DIM: gl.constexpr, TILE: gl.constexpr):
    """Starts a tile on its way to that place of the ring: of its halves, all boxes of each."""
    BOXES: gl.constexpr = TILE // pool.block_shape[0]
    HALVES: gl.constexpr = DIM // WIDTH
    mbarrier.expect(bar, TILE * DIM * 2)
    for box in gl.static_range(BOXES):
        for half in gl.static_range(HALVES):
            target = ring.index((place * HALVES + half) * BOXES + box)
            tma.async_copy_global_to_shared(pool, [rows[box] + offset, half * WIDTH], bar, target)


@gluon.jit
def _clear(ring, place, position, low, end, DIM: gl.constexpr, TILE: gl.constexpr):
    """Zeros values of a tile at ``position`` that nobody sees: a weight of 0 times NaN is NaN.

    ring: in boxes of eight positions.
    """
    HALVES: gl.constexpr = DIM // WIDTH
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    within = gl.arange(0, 8, gl.SliceLayout(1, layout))
    for eight in range(TILE // 8):
        first = position + eight * 8
        if (first < low) | (first + 8 > end):
            seen = (first + within >= low) & (first + within < end)
            for half in gl.static_range(HALVES):
                values = ring.index((place * HALVES + half) * (TILE // 8) + eight)
                kept = values.load(layout)
                values.store(gl.where(seen[:, None], kept, gl.zeros_like(kept)))


@gluon.jit
def produce_tiles(
    pool, block_tables, lists, turns, table_stride, k_ring, v_ring, k_ready, k_empty, v_ready,
    v_empty, landed, KV_HEADS: gl.constexpr, TOKENS: gl.constexpr, DIM: gl.constexpr,
    PER_BLOCK: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
    MASK_SIZE: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    BOX: gl.constexpr = pool.block_shape[0]
    v_eights = v_ring._reinterpret(
        pool.dtype, [STAGES * (DIM // WIDTH) * (TILE // 8), 8, WIDTH], pool.layout
    )
    fetched = 0  # tiles of positions, of all turns so far
    cleared = 0
    _, size, position, slot, kv_head = item_of_turn(0, lists, KV_HEADS, TOKENS)
    if PDL:
        gdc_wait()
    for turn in range(turns):
        following = item_of_turn(turn + 1, lists, KV_HEADS, TOKENS)
        table = block_tables + slot.to(gl.int64) * table_stride
        end = position + size
        low = first_visible(position, MASK, MASK_SIZE)
        last, count = tiles_seen(position, size, TILE, MASK, MASK_SIZE)
        # Keys of a tile before the values of the one before it: that is how they are used.
        for step in range(count + 1 if count > 0 else 0):
            if step < count:
                rows = _box_rows(
                    table, last - step, kv_head, low, end, KV_HEADS, PER_BLOCK, TILE, BOX
                )
                place = (fetched + step) % STAGES
                mbarrier.wait(k_empty.index(place), ((fetched + step) // STAGES & 1) ^ 1)
                _fetch(pool, rows, 0, k_ring, place, k_ready.index(place), DIM, TILE)
            if step > 0:
                tile = last - step + 1
                first = tile * TILE
                rows = _box_rows(table, tile, kv_head, low, end, KV_HEADS, PER_BLOCK, TILE, BOX)
                place = (fetched + step - 1) % STAGES
                mbarrier.wait(v_empty.index(place), ((fetched + step - 1) // STAGES & 1) ^ 1)
                # Only boxes that are seen in part hold what must not be used.
                unclean = (first < low) & (low % BOX != 0)
                unclean = unclean | ((first + TILE > end) & (end % BOX != 0))
                if unclean:
                    _fetch(pool, rows, KV_HEADS * PER_BLOCK, v_ring, place, landed, DIM, TILE)
                    mbarrier.wait(landed, cleared & 1)
                    cleared += 1
                    _clear(v_eights, place, first, low, end, DIM, TILE)
                    fence_async_shared()  # the tensor cores read past where threads write
                    gl.thread_barrier()
                    mbarrier.arrive(v_ready.index(place), count=1)
                else:
                    bar = v_ready.index(place)
                    _fetch(pool, rows, KV_HEADS * PER_BLOCK, v_ring, place, bar, DIM, TILE)
        fetched += count
        _, size, position, slot, kv_head = following


@gluon.jit
def fetch_queries(
    q, target, row, size, kv_head, token_stride, head_stride, GROUP_OF_WARPS: gl.constexpr,
    GROUP: gl.constexpr, DIM: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Starts half an item's queries on their way. Rows past its tokens repeat the last one's."""
    if size > 0:
        pair = GROUP_OF_WARPS * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LAYOUT))
        dim = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
        token = row + gl.minimum(pair // GROUP, size - 1)
        head = kv_head * GROUP + pair % GROUP
        queries = q + token.to(gl.int64) * token_stride + head * head_stride
        async_copy.async_copy_global_to_shared(target, queries[:, None] + dim[None, :])
    async_copy.commit_group()


@gluon.jit
def await_queries():
    """Until a group's queries are where the tensor cores read, past where threads write."""
    async_copy.wait_group(0)
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def opaque(number):
    """The same number, but the assembler does not know.

    ptxas 12.8 merges what it should not: descriptors that are computed from one number before two
    loops, either of which may not be reached, it computes before the first alone, and the second
    loop takes whatever the registers hold. From numbers of their own it computes them twice.
    """
    plus_zero: gl.constexpr = (
        "mov.u32 $0, %laneid; shfl.sync.idx.b32 $0, $0, 0, 31, 0xffffffff; add.s32 $0, $0, $1;"
    )
    return gl.inline_asm_elementwise(plus_zero, "=&r,r", [number], gl.int32, False, 1)
