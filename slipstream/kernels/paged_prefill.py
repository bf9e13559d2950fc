# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention of chunks of a prompt over a paged KV cache.

A tile's rows are its tokens times the query heads of one KV head. KV that all of them see needs no
mask; what lies before and after it, on the edges of the mask, is walked separately. On Hopper
``stream_prefill`` does the same faster.
"""

from __future__ import annotations

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
from slipstream.kernels.skinny_linear import streams

_TILE_ROWS = 128


class PrefillTuning(NamedTuple):
    rows: int  # tokens times heads, of one program
    tile: int  # positions
    warps: int
    stages: int


def _tuning(head_dim: int, dtype: torch.dtype) -> PrefillTuning:
    if dtype == torch.float32:
        return PrefillTuning(16, 32, 8, 1)
    dim = triton.next_power_of_2(head_dim)
    if dim <= 128:
        return PrefillTuning(128, 64, 8, 3)
    return PrefillTuning(128, 32, 8, 2)


def tile_tokens(heads: int, kv_heads: int) -> int:
    """How many tokens a tile of ``prefill_attention`` may have at most."""
    return max(1, _TILE_ROWS // (heads // kv_heads))


def streams_prefill(q: torch.Tensor, pool: torch.Tensor) -> bool:
    """Whether ``stream_prefill`` serves these arguments of ``prefill_attention``."""
    kv_heads, per_block, head_dim = pool.shape[2:]
    return (
        streams(pool.device)
        and pool.dtype in (torch.bfloat16, torch.float16)
        and pool.dtype == q.dtype
        and head_dim in (64, 128)
        and per_block >= 8
        and q.shape[1] // kv_heads <= _TILE_ROWS
        and pool.numel() // head_dim < 2**31
        # Copies of 16 bytes; the compiler knows that they are aligned if those are.
        and q.data_ptr() % 16 == 0
        and q.stride(0) % 16 == 0
        and q.stride(1) % 16 == 0
    )


def prefill_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    block_tables: torch.Tensor,
    tile_rows: torch.Tensor,
    tile_sizes: torch.Tensor,
    tile_slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    mask_kind: MaskKind,
    mask_size: int,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
    streamed: bool | None = None,
) -> None:
    """Attends from tiles of tokens to what the mask shows each of its sequence, KV stored.

    tile_rows: int32 ``[tiles]``, a tile's first row of q, positions and out, or -1, which does
    nothing. tile_sizes: int32 ``[tiles]``, its tokens, consecutive rows and positions of one
    sequence, up to ``tile_tokens``. tile_slots: int32 ``[tiles]``, the sequence's row of
    block_tables. Tiles run in their order: the longest first end soonest. The rest: see
    ``decode_attention``. streamed: whether by ``stream_prefill``; None: where it serves.

    block_tables, positions and the tiles must have been written before a kernel that is not
    launched as a dependent one (see ``overlap``): those are read while the kernel before still
    runs.
    """
    check_layout(q, pool, out)
    heads, kv_heads = q.shape[1], pool.shape[2]
    group = heads // kv_heads
    inner, factor = scoring(scale * key_scale, soft_cap)
    compiled_for = compile_time(q, pool, mask_kind, mask_size, soft_cap, sinks)
    if streams_prefill(q, pool) if streamed is None else streamed:
        from slipstream.kernels.stream_prefill import launch_stream_prefill

        launch_stream_prefill(
            q, pool, block_tables, tile_rows, tile_sizes, tile_slots, positions, out, sinks,
            inner, factor, value_scale, compiled_for=compiled_for,
        )  # fmt: skip
        return
    tuning = _tuning(pool.shape[4], q.dtype)
    num_rows = max(tuning.rows, triton.next_power_of_2(group))
    tokens = num_rows // group
    parts = -(-tile_tokens(heads, kv_heads) // tokens)
    _prefill[(tile_rows.shape[0] * parts, kv_heads)](
        q, pool, block_tables, tile_rows, tile_sizes, tile_slots, positions, out, sinks,
        inner, factor, value_scale, q.stride(0), q.stride(1), block_tables.stride(0),
        PARTS=parts,
        TOKENS=tokens,
        ROWS=num_rows,
        TILE=tuning.tile,
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        **compiled_for,
    )  # fmt: skip


# Integers may be slices of one buffer: how they lie in it must not choose among compiled kernels.
_INTEGERS = ["block_tables", "tile_rows", "tile_sizes", "tile_slots", "positions"]


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=_INTEGERS)
def _prefill(
    q,
    pool,
    block_tables,
    tile_rows,
    tile_sizes,
    tile_slots,
    positions,
    out,
    sinks,
    inner,
    factor,
    value_scale,
    q_token_stride,
    q_head_stride,
    table_stride,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
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
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    index, part, kv_head = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS, tl.program_id(1)
    first_row = tl.load(tile_rows + index)
    size = tl.minimum(tl.load(tile_sizes + index) - part * TOKENS, TOKENS)
    if (first_row < 0) | (size <= 0):
        return
    first_row += part * TOKENS
    first_position = tl.load(positions + first_row)
    end = first_position + size
    table = block_tables + tl.load(tile_slots + index).to(tl.int64) * table_stride

    pair, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    head = kv_head * GROUP + pair % GROUP
    token = first_row.to(tl.int64) + pair // GROUP
    real = pair < size * GROUP
    queries = q + token * q_token_stride + head * q_head_stride
    query = load_rows(queries, real, dim, True, HEAD_DIM, q.dtype.element_ty)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        maximum = tl.maximum(sink * LOG2E, LOWEST)
        total = tl.exp2(sink * LOG2E - maximum)
    summed = tl.zeros([ROWS, DIM], tl.float32)
    # Rows past the tile's tokens look at what the last one sees, and are not written.
    own = first_position + tl.minimum(pair // GROUP, size - 1)

    begin = first_visible(first_position, MASK, MASK_SIZE) // TILE * TILE
    shared_from = tl.cdiv(first_visible(end - 1, MASK, MASK_SIZE), TILE) * TILE
    shared_to = (first_position + 1) // TILE * TILE
    if shared_from >= shared_to:
        shared_from = begin
        shared_to = begin
    for stretch in tl.static_range(3):
        if stretch == 0:
            walk_from, walk_to = begin, shared_from
        elif stretch == 1:
            walk_from, walk_to = shared_from, shared_to
        else:
            walk_from, walk_to = shared_to, end
        if stretch > 0 or MASK != "full":
            maximum, total, summed = _walk(
                query, own, maximum, total, summed, pool, table, kv_head, walk_from, walk_to, end,
                dim, inner, factor, stretch != 1,
                KV_HEADS, HEAD_DIM, PER_BLOCK, TILE, MASK, MASK_SIZE, SOFT_CAP, PRECISION,
            )  # fmt: skip
    result = (summed / total[:, None] * value_scale).to(out.dtype.element_ty)
    out_rows = out + (token * (KV_HEADS * GROUP) + head) * HEAD_DIM
    written = real[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(out_rows[:, None] + dim[None, :], result, mask=written)


@triton.jit
def _walk(
    query,
    own,
    maximum,
    total,
    summed,
    pool,
    table,
    kv_head,
    walk_from,
    walk_to,
    end,
    dim,
    inner,
    factor,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_SIZE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attends to the tiles of positions from ``walk_from``, a multiple of TILE, to ``walk_to``.

    own: [rows] positions of the queries. What lies at ``end`` or later nobody sees.
    """
    earliest = first_visible(own, MASK, MASK_SIZE)
    begin = tl.min(earliest, 0)
    blocks = load_blocks(table, walk_from, end, TILE, PER_BLOCK)
    for position in range(walk_from, walk_to, TILE):
        seen = position + tl.arange(0, TILE)
        stored = (seen >= begin) & (seen < end)
        keys = key_rows(pool, blocks, position, kv_head, TILE, PER_BLOCK, KV_HEADS, HEAD_DIM)
        blocks = load_blocks(table, position + TILE, end, TILE, PER_BLOCK)
        key = load_rows(keys, stored, dim, MASKED, HEAD_DIM, query.dtype)
        values = keys + KV_HEADS * PER_BLOCK * HEAD_DIM
        value = load_rows(values, stored, dim, MASKED, HEAD_DIM, query.dtype)
        raw = capped(tl.dot(query, key.T, input_precision=PRECISION), inner, SOFT_CAP)
        if MASKED:
            visible = (seen[None, :] <= own[:, None]) & (seen[None, :] >= earliest[:, None])
            raw = tl.where(visible, raw, float("-inf"))
        weights, shrink, maximum, total = softmax_step(raw, factor, maximum, total)
        summed = tl.dot(
            weights.to(value.dtype), value, summed * shrink[:, None], input_precision=PRECISION
        )
    return maximum, total, summed
