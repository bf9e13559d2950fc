# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""From the fused projection to attention: norms, rotation and the write to the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

# One warp holds four heads of 128 as 16 bytes a thread; no reduction leaves the warp.
_HEADS = 4
_MANY_TOKENS = 1024  # from here on starting programs would take longer than what they do


@dataclass(frozen=True, slots=True)
class Unprepared:
    """What ``prepare_qkv`` gets besides qkv and a pool of qkv's dtype, for a kernel that does its
    work along with its own. Fields as its arguments."""

    write_slots: torch.Tensor
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    style: str = "halves"
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    eps: float = 0.0
    norm_after_rope: bool = False
    q_factor: torch.Tensor | None = None


@triton.jit
def _norm(x1, x2, rest, weight, columns1, columns2, columns3, inside, inside_rest, eps,
          SIZE: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """The RMS norm of the heads, each in three parts, of which the last may be missing."""
    if weight is not None:
        dtype = x1.dtype
        y1, y2 = x1.to(tl.float32), x2.to(tl.float32)
        squares = tl.sum(y1 * y1, 1) + tl.sum(y2 * y2, 1)
        if REST > 0:
            y3 = rest.to(tl.float32)
            squares += tl.sum(y3 * y3, 1)
        scale = tl.rsqrt(squares / SIZE + eps)[:, None]
        w1 = tl.load(weight + columns1, mask=inside, other=0.0).to(tl.float32)[None, :]
        w2 = tl.load(weight + columns2, mask=inside, other=0.0).to(tl.float32)[None, :]
        x1, x2 = (y1 * scale * w1).to(dtype), (y2 * scale * w2).to(dtype)
        if REST > 0:
            w3 = tl.load(weight + columns3, mask=inside_rest, other=0.0).to(tl.float32)[None, :]
            rest = (y3 * scale * w3).to(dtype)
    return x1, x2, rest


@triton.jit
def rotated(x, partner, cos, sin):
    """Rounds after each operation, as layers.rotary.rotate_ does."""
    turned = (partner.to(tl.float32) * sin.to(tl.float32)).to(x.dtype)
    kept = (x.to(tl.float32) * cos.to(tl.float32)).to(x.dtype)
    return (kept.to(tl.float32) + turned.to(tl.float32)).to(x.dtype)


@triton.jit
def scaled(x, factor):
    return (x.to(tl.float32) * factor.to(tl.float32)).to(x.dtype)


@triton.jit
def _stored(x, scale, dtype: tl.constexpr):
    """What the cache holds of keys or values: as they are, or what attention.kv_scale says."""
    if dtype == tl.float8e4nv:
        # Exactly rounded, so that every device stores the same; and NaN is not to become a number.
        x = tl.math.div_rn(x.to(tl.float32), scale)
        x = tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(dtype)


@triton.jit
def _prepare_qkv(
    qkv, pool, write_slots, cos, sin, q_norm, k_norm, q_factor, q_out, eps, key_scale, value_scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr,
    TOKENS_PER_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr, NORM_AFTER: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    # A head is held as the firsts of its pairs, the seconds, and what is not rotated. Each entry
    # belongs to one thread, so the update in place needs no barrier.
    token = tl.program_id(0).to(tl.int64)
    query_programs: tl.constexpr = (QUERIES + HEADS - 1) // HEADS
    group = tl.program_id(1)
    is_query = group < query_programs
    if not is_query:
        group -= query_programs
    head = group * HEADS + tl.arange(0, HEADS)
    count = tl.where(is_query, QUERIES, KEYS)
    pair = tl.arange(0, PAIRS)
    inside = pair < DIM // 2
    columns1 = pair * 2 if INTERLEAVED else pair
    columns2 = columns1 + (1 if INTERLEAVED else DIM // 2)
    mask = (head < count)[:, None] & inside[None, :]
    row = token * (QUERIES + 2 * KEYS) + tl.where(is_query, head, QUERIES + head)
    start = qkv + row[:, None] * SIZE
    x1 = tl.load(start + columns1[None, :], mask=mask, other=0.0)
    x2 = tl.load(start + columns2[None, :], mask=mask, other=0.0)
    if REST > 0:
        columns3 = DIM + tl.arange(0, REST)
        inside_rest = columns3 < SIZE
        mask_rest = (head < count)[:, None] & inside_rest[None, :]
        rest = tl.load(start + columns3[None, :], mask=mask_rest, other=0.0)
    else:
        columns3, inside_rest, rest = columns1, inside, x1  # never looked at
    if cos is not None:
        table = token * DIM
        cos1 = tl.load(cos + table + columns1, mask=inside, other=0.0)[None, :]
        cos2 = tl.load(cos + table + columns2, mask=inside, other=0.0)[None, :]
        sin1 = tl.load(sin + table + columns1, mask=inside, other=0.0)[None, :]
        sin2 = tl.load(sin + table + columns2, mask=inside, other=0.0)[None, :]
        if NORM_AFTER:
            x1, x2 = rotated(x1, x2, cos1, sin1), rotated(x2, x1, cos2, sin2)
    if is_query:
        y1, y2, y3 = _norm(x1, x2, rest, q_norm, columns1, columns2, columns3, inside,
                           inside_rest, eps, SIZE, REST)  # fmt: skip
        if cos is not None and not NORM_AFTER:
            y1, y2 = rotated(y1, y2, cos1, sin1), rotated(y2, y1, cos2, sin2)
        if q_factor is not None:
            factor = tl.load(q_factor + token)
            y1, y2 = scaled(y1, factor), scaled(y2, factor)
            if REST > 0:
                y3 = scaled(y3, factor)
        if q_out is not None:
            start = q_out + (token * QUERIES + head)[:, None] * SIZE
        tl.store(start + columns1[None, :], y1, mask=mask)
        tl.store(start + columns2[None, :], y2, mask=mask)
        if REST > 0:
            tl.store(start + columns3[None, :], y3, mask=mask_rest)
    else:
        slot = tl.load(write_slots + token)
        if slot >= 0:
            y1, y2, y3 = _norm(x1, x2, rest, k_norm, columns1, columns2, columns3, inside,
                               inside_rest, eps, SIZE, REST)  # fmt: skip
            if cos is not None and not NORM_AFTER:
                y1, y2 = rotated(y1, y2, cos1, sin1), rotated(y2, y1, cos2, sin2)
            values = start + KEYS * SIZE
            plane: tl.constexpr = KEYS * TOKENS_PER_BLOCK * SIZE
            block = slot // TOKENS_PER_BLOCK
            offset = slot % TOKENS_PER_BLOCK
            place = pool + block * 2 * plane + (head[:, None] * TOKENS_PER_BLOCK + offset) * SIZE
            cached: tl.constexpr = pool.dtype.element_ty
            further = place + plane
            v1 = tl.load(values + columns1[None, :], mask=mask)
            v2 = tl.load(values + columns2[None, :], mask=mask)
            tl.store(place + columns1[None, :], _stored(y1, key_scale, cached), mask=mask)
            tl.store(place + columns2[None, :], _stored(y2, key_scale, cached), mask=mask)
            tl.store(further + columns1[None, :], _stored(v1, value_scale, cached), mask=mask)
            tl.store(further + columns2[None, :], _stored(v2, value_scale, cached), mask=mask)
            if REST > 0:
                v3 = tl.load(values + columns3[None, :], mask=mask_rest)
                y3, v3 = _stored(y3, key_scale, cached), _stored(v3, value_scale, cached)
                tl.store(place + columns3[None, :], y3, mask=mask_rest)
                tl.store(further + columns3[None, :], v3, mask=mask_rest)


def prepare_qkv(
    qkv: torch.Tensor,
    pool: torch.Tensor,
    write_slots: torch.Tensor,
    *,
    kv_heads: int,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    style: str = "halves",
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    norm_after_rope: bool = False,
    q_factor: torch.Tensor | None = None,
    q_out: torch.Tensor | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> None:
    """Makes queries ready and writes keys and values to the cache, in one launch.

    qkv: ``[tokens, heads + 2 * kv_heads, head_dim]``, contiguous. Queries and keys are normalised
    over a head (weights ``[head_dim]``, qkv's dtype or float32), then their leading ``dim`` entries
    rotated by cos and sin, ``[tokens, dim]`` or ``[tokens, 1, dim]`` as ``RotaryEmbedding.tables``
    gives them; the other way round if norm_after_rope. Queries are then multiplied by q_factor,
    ``[tokens]`` in all. They replace those in qkv, or go to q_out, contiguous ``[tokens, heads,
    head_dim]``.

    pool: one layer, ``[blocks, 2, kv_heads, tokens_per_block, head_dim]``, contiguous, qkv's dtype;
    or float8_e4m3fn, where keys over key_scale and values over value_scale are stored, saturated.
    write_slots: int64 ``[tokens]``, ``block * tokens_per_block + offset``, or -1 for a token whose
    keys and values are not wanted. The keys in qkv stay as they were: only the cache gets the new
    ones.
    """
    tokens, heads, size = qkv.shape
    if not tokens:
        return
    queries = heads - 2 * kv_heads
    dim = size if cos is None else cos.shape[-1]
    rest = triton.next_power_of_2(size - dim) if dim < size else 0
    warps = 4 if tokens >= _MANY_TOKENS else 1
    held = warps * _HEADS
    grid = (tokens, triton.cdiv(queries, held) + triton.cdiv(kv_heads, held))
    _prepare_qkv[grid](
        qkv, pool, write_slots, cos, sin, q_norm, k_norm, q_factor, q_out, eps, key_scale,
        value_scale, QUERIES=queries, KEYS=kv_heads, SIZE=size, DIM=dim,
        TOKENS_PER_BLOCK=pool.shape[3],
        INTERLEAVED=style == "interleaved", NORM_AFTER=norm_after_rope,
        HEADS=held, PAIRS=triton.next_power_of_2(dim // 2), REST=rest,
        num_warps=warps, **launch_options(),
    )  # fmt: skip
