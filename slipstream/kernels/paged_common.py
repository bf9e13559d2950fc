# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the kernels of decode and prefill share: masks, scores, and where a tile's KV lives.

Scores are kept in two parts, raw values and a factor that takes them to powers of two, so that the
multiplication joins the subtraction of the maximum: ``exp2(raw * factor - maximum)``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import launch_options

MaskKind = Literal["full", "sliding", "chunked"]

LOG2E = tl.constexpr(math.log2(math.e))
# Below any score, and finite: a row that has seen nothing yet must not compute inf - inf.
LOWEST = tl.constexpr(-1.0e30)


class Scoring(NamedTuple):
    """The numbers behind ``score_factors``: see ``capped``."""

    inner: float
    factor: float


def scoring(scale: float, soft_cap: float | None) -> Scoring:
    """How raw products of queries and keys become exponents of two; ``scale`` must be positive."""
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if soft_cap is None:
        return Scoring(1.0, scale * math.log2(math.e))
    return Scoring(2 * math.log2(math.e) * scale / soft_cap, soft_cap * math.log2(math.e))


def precision(dtype: torch.dtype) -> str:
    """Of products: float32 is for comparisons, where TF32's ten bits would not do."""
    return "ieee" if dtype == torch.float32 else "tf32"


def check_layout(q: torch.Tensor, pool: torch.Tensor, out: torch.Tensor) -> None:
    """Refuses tensors that the kernels would read or write wrongly."""
    assert pool.dim() == 5, "pool: [num_blocks, 2, kv_heads, tokens_per_block, head_dim]"
    assert pool.shape[1] == 2
    assert pool.shape[4] == q.shape[2]
    assert pool.is_contiguous()
    assert out.is_contiguous()
    assert q.stride(2) == 1
    assert q.dtype == out.dtype
    assert pool.dtype in (q.dtype, torch.float8_e4m3fn)
    assert q.shape[1] % pool.shape[2] == 0, "query heads must be a multiple of KV heads"
    assert pool.shape[3] & (pool.shape[3] - 1) == 0, "tokens_per_block must be a power of two"


def compile_time(
    q: torch.Tensor,
    pool: torch.Tensor,
    mask_kind: MaskKind,
    mask_size: int,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
) -> dict[str, Any]:
    """What both kernels are compiled for, as keyword arguments of a launch."""
    kv_heads, per_block, head_dim = pool.shape[2:]
    return {
        "GROUP": q.shape[1] // kv_heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "DIM": triton.next_power_of_2(head_dim),
        "PER_BLOCK": per_block,
        "MASK": mask_kind,
        "MASK_SIZE": mask_size,
        "SOFT_CAP": soft_cap is not None,
        "SINKS": sinks is not None,
        "PRECISION": precision(q.dtype),
        **launch_options(),
    }


@triton.jit
def first_visible(position, MASK: tl.constexpr, MASK_SIZE: tl.constexpr):
    """The earliest position that each position sees; see attention.interface.Mask."""
    if MASK == "sliding":
        earliest = tl.maximum(position - (MASK_SIZE - 1), 0)
    elif MASK == "chunked":
        earliest = position // MASK_SIZE * MASK_SIZE
    else:
        earliest = position * 0
    return earliest


@triton.jit
def capped(raw, inner, SOFT_CAP: tl.constexpr):
    """``tanh`` of the scaled scores over the cap, by the exponential; raw as it is without a cap.

    Its argument's overflow is benign: the quotient becomes zero.
    """
    if SOFT_CAP:
        raw = 1.0 - 2.0 / (tl.exp2(raw * inner) + 1.0)
    return raw


@triton.jit
def softmax_step(raw, factor, maximum, total):
    """One tile of the online softmax: ``raw`` [rows, columns], -inf where masked.

    Returns the tile's weights, what earlier sums shrink by, and the new maximum and total.
    """
    new_maximum = tl.maximum(maximum, tl.max(raw, 1) * factor)
    weights = tl.exp2(raw * factor - new_maximum[:, None])
    shrink = tl.exp2(maximum - new_maximum)
    return weights, shrink, new_maximum, total * shrink + tl.sum(weights, 1)


@triton.jit
def load_blocks(table, position, end, TILE: tl.constexpr, PER_BLOCK: tl.constexpr):
    """Blocks of the tile that begins at ``position``, a multiple of TILE.

    One id where a tile lies inside a block, else one for each of its positions. Entries at or past
    position ``end`` are not read. Read a tile ahead, so that no load waits for another.
    """
    if PER_BLOCK < TILE:
        position += tl.arange(0, TILE)
    return tl.load(table + position // PER_BLOCK, mask=position < end, other=0)


@triton.jit
def key_rows(
    pool,
    blocks,
    position,
    kv_head,
    TILE: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Pointers [TILE] to the keys of a tile; its values are KV_HEADS * PER_BLOCK rows further."""
    BLOCK: tl.constexpr = 2 * KV_HEADS * PER_BLOCK * HEAD_DIM
    if PER_BLOCK >= TILE:
        rows = position % PER_BLOCK + tl.arange(0, TILE)
    else:
        rows = tl.arange(0, TILE) % PER_BLOCK
    return pool + blocks.to(tl.int64) * BLOCK + (kv_head * PER_BLOCK + rows) * HEAD_DIM


@triton.jit
def load_rows(
    pointers,
    row_mask,
    dim,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    dtype: tl.constexpr,
):
    """Rows of the pool or of queries as ``dtype``; zero where masked: a stale NaN must not reach a
    product. What is stored in eight bits is widened, which is exact, and not scaled."""
    DIM: tl.constexpr = dim.shape[0]
    pointers = pointers[:, None] + dim[None, :]
    # Where dimensions are not padded the mask is one of rows, and a load without one is possible.
    if MASKED and DIM == HEAD_DIM:
        loaded = tl.load(pointers, mask=row_mask[:, None], other=0.0)
    elif MASKED:
        mask = row_mask[:, None] & (dim < HEAD_DIM)[None, :]
        loaded = tl.load(pointers, mask=mask, other=0.0)
    elif DIM == HEAD_DIM:
        loaded = tl.load(pointers)
    else:
        loaded = tl.load(pointers, mask=(dim < HEAD_DIM)[None, :], other=0.0)
    return loaded.to(dtype)
