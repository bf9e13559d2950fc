# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``x @ w.T`` for a handful of rows on Hopper: w streams through a ring in shared memory.

One warp of a program keeps the ring full (TMA), the others multiply what has arrived (wgmma, w as
the left operand). Nearly all of an SM's shared memory is in flight at any time, the first of it
before the kernel that makes x has ended. A program multiplies a tile of N by its part of K, or,
where there are more tiles than SMs, several tiles in turn through the same ring.

The RMS norm between two such products needs no kernel of its own: the first joins its result to the
residual and multiplies that by the norm's weight, the second divides its sums by the root mean
square of their rows.
"""

from __future__ import annotations

from typing import NamedTuple

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

from slipstream.kernels.activation import activated_product
from slipstream.kernels.overlap import launch_options
from slipstream.kernels.skinny_linear import MAX_ROWS, SkinnyConfig

# Of a thread at the start, by warps; leaves some to the kernels before and after.
_REGISTERS = {4: 96, 8: 104}
_MORE_REGISTERS = 128  # for more than 16 rows
_MOST_REGISTERS = 216  # where a thread holds more than 64 sums
_PRODUCER_REGISTERS = 40
_RING_BYTES = 216 << 10  # of an SM's 227 KiB: leaves some to the kernels before and after
_SHARED_BYTES = 224 << 10  # of the ring and the room in which a tile changes its layout
_SQUARES = 512  # that a warp adds up at a time
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


class Join(NamedTuple):
    """Where a product goes that joins a residual: ``hidden += scale * product``, in place.

    hidden: ``[rows, N]``, contiguous, bfloat16. weight: ``[N]``, the next RMS norm's, in that dtype
    or in float32. squares: float32 ``[ceil(N / block_n), padded_rows(rows)]``, takes for each tile
    of columns the sums of the squares of the new rows.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    squares: torch.Tensor
    scale: float


class Divisor(NamedTuple):
    """What rows have yet to be divided by: the root of their mean square plus eps. squares: as a
    Join has left them."""

    squares: torch.Tensor
    eps: float


# Tiles of w and the warps that multiply them.
_FEW_ROWS = ((64, 256, 4), (128, 128, 4), (256, 64, 4))
_MORE_ROWS = ((64, 128, 4), (64, 256, 4), (128, 128, 8), (128, 64, 8), (256, 64, 8))
_MOST_ROWS = ((64, 64, 4), (128, 128, 4))


def streamed_candidates(
    rows: int, n: int, k: int, activation: str | None, processors: int
) -> list[SkinnyConfig]:
    """Configurations worth timing for ``[rows, k]`` inputs and ``[n, k]`` weights on so many
    multiprocessors: those that keep enough of them busy. All give the right result."""
    padded = padded_rows(rows)
    shapes = _FEW_ROWS if padded <= 32 else _MORE_ROWS if padded <= 64 else _MOST_ROWS
    found = []
    for block_n, block_k, warps in shapes:
        wide = block_n if activation is None else block_n // 2
        tiles, k_tiles = triton.cdiv(n, block_n), triton.cdiv(k, block_k)
        most = 1 if block_n == 256 else min(processors // tiles, k_tiles, 8) or 1
        most = triton.cdiv(k_tiles, triton.cdiv(k_tiles, most))  # none of them without a part
        # Where parts of K are short, more programs may cost more than they gain.
        fewer = (block_n == 64 or activation is not None) and k // most <= 512
        for splits in dict.fromkeys((most, (most + 1) // 2 if fewer else most)):
            if wide < 64 or tiles * splits < 0.35 * processors:
                continue
            stages = _RING_BYTES // ((block_n + padded) * block_k * 2)
            if tiles * splits <= processors:  # what is not used is left to the next kernel
                stages = min(stages, triton.cdiv(k_tiles, splits))
            warps = min(warps, wide // 16)
            found.append(SkinnyConfig(block_n, block_k, splits, warps, stages, "stream"))
    return found


@gluon.jit
def _copy_weights(
    w, ring, bar, stage, row, column, pred, N: gl.constexpr, PER: gl.constexpr, BYTES: gl.constexpr
):
    """Starts a tile on its way, of gates and of ups; BYTES are those of the inputs as well."""
    mbarrier.expect(bar, BYTES, pred=pred)
    for half in gl.static_range(PER):
        tma.async_copy_global_to_shared(
            w, [row + half * (N // PER), column], bar, ring.index(stage * PER + half), pred=pred
        )


@gluon.jit
def _produce(
    w, x, w_ring, x_ring, ready, empty, begun, first, last, split, N: gl.constexpr,
    PER: gl.constexpr, SHARE: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """Tiles first to last of N, of each SHARE tiles along K. Those past K's end are zeros."""
    WIDE: gl.constexpr = w.block_shape[0]
    BLOCK_K: gl.constexpr = w.block_shape[1]
    BYTES: gl.constexpr = (PER * WIDE + x.block_shape[0]) * BLOCK_K * 2
    # Here, where only the threads of a warp have to wait for each other between them.
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    fence_async_shared()
    mbarrier.arrive(begun, count=1)
    end = (last - first) * SHARE
    # The first of the weights travel while the kernel that makes x still runs.
    for stage in range(STAGES):
        row = (first + stage // SHARE) * WIDE
        column = (split * SHARE + stage % SHARE) * BLOCK_K
        bar = ready.index(stage)
        _copy_weights(w, w_ring, bar, stage, row, column, stage < end, N, PER, BYTES)
    if PDL:
        gdc_wait()
    for stage in range(STAGES):
        column = (split * SHARE + stage % SHARE) * BLOCK_K
        tma.async_copy_global_to_shared(
            x, [0, column], ready.index(stage), x_ring.index(stage), pred=stage < end
        )
    for turn in range(STAGES, end):
        stage = turn % STAGES
        row = (first + turn // SHARE) * WIDE
        column = (split * SHARE + turn % SHARE) * BLOCK_K
        bar = ready.index(stage)
        mbarrier.wait(empty.index(stage), (turn // STAGES - 1) & 1)
        _copy_weights(w, w_ring, bar, stage, row, column, True, N, PER, BYTES)
        tma.async_copy_global_to_shared(x, [0, column], bar, x_ring.index(stage))


@gluon.jit
def _store(
    out, sums, ups, factors, start, rows, WIDTH: gl.constexpr, DIVIDES: gl.constexpr,
    ACTIVATION: gl.constexpr,
):  # fmt: skip
    """sums, ups: ``[columns, rows]``, of the columns of out from ``start`` on. factors: of rows, in
    shared memory."""
    layout: gl.constexpr = sums.type.layout
    if DIVIDES:
        factor = factors.load(gl.SliceLayout(0, layout))[None, :]
        sums *= factor
        ups *= factor
    value = sums.to(out.dtype.element_ty)
    if ACTIVATION is not None:
        value = activated_product(value, ups.to(out.dtype.element_ty), ACTIVATION)
    column = start + gl.arange(0, sums.shape[0], gl.SliceLayout(1, layout))
    row = gl.arange(0, sums.shape[1], gl.SliceLayout(0, layout))
    stored = (column < WIDTH)[:, None] & (row < rows)[None, :]
    gl.store(out + row[None, :] * WIDTH + column[:, None], value, mask=stored)


@gluon.constexpr_function
def _along_columns(wide, warps):
    """The layout of ``[columns, rows]`` that reads and writes rows in long pieces."""
    lanes = min(wide // 4, 32)
    return gl.BlockedLayout([4, 1], [lanes, 32 // lanes], [1, warps], [0, 1])


@gluon.jit
def _fetch(addresses):
    """Brings their lines to the L2 cache."""
    gl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [addresses], gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _fetch_residual(
    join, start, rows, WIDTH: gl.constexpr, WIDE: gl.constexpr, ROWS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """A tile of it, and of the norm's weight: since they were used last, many weights have passed
    through the cache."""
    lines: gl.constexpr = WIDE // 32  # of 128 bytes in float32
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [lines, 32 // lines], [1, WARPS], [0, 1])
    column = start + gl.arange(0, lines, gl.SliceLayout(1, layout)) * 32
    column = gl.minimum(column, WIDTH - 1)
    row = gl.minimum(gl.arange(0, ROWS, gl.SliceLayout(0, layout)), rows - 1)
    _fetch(join[1] + column)
    _fetch(join[0] + row[None, :] * WIDTH + column[:, None])


@gluon.jit
def _store_joined(
    out, sums, join, tile, rows, WIDTH: gl.constexpr, WIDE: gl.constexpr, ROWS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Adds a tile of the product to the residual; out takes that times the norm's weight."""
    layout: gl.constexpr = _along_columns(WIDE, WARPS)
    dtype: gl.constexpr = out.dtype.element_ty
    column = tile * WIDE + gl.arange(0, WIDE, gl.SliceLayout(1, layout))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, layout))
    place = row[None, :] * WIDTH + column[:, None]
    used = (column < WIDTH)[:, None] & (row < rows)[None, :]
    # Past L1, which may have seen it before it was written last.
    residual = gl.load(join[0] + place, mask=used, other=0.0, cache_modifier=".cg")
    weight = gl.load(join[1] + column, mask=column < WIDTH, other=0.0).to(gl.float32)
    delta = gl.convert_layout(sums.to(dtype), layout).to(gl.float32)
    joined = (residual.to(gl.float32) + delta * join[3]).to(dtype)
    gl.store(join[0] + place, joined, mask=used)
    values = joined.to(gl.float32)
    gl.store(out + place, (values * weight[:, None]).to(dtype), mask=used)
    gl.store(join[2] + tile * ROWS + row, gl.sum(values * values, 0))


@gluon.jit
def _find_factors(
    factors, divisor, found, TILES: gl.constexpr, SIZE: gl.constexpr, AT_A_TIME: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    """The reciprocals of what rows of so many entries have to be divided by, to shared memory. By a
    warp of its own: they are needed after the last product."""
    if divisor is not None:
        ROWS: gl.constexpr = factors.shape[0]
        lanes: gl.constexpr = min(ROWS // 4, 32)
        layout: gl.constexpr = gl.BlockedLayout([1, 4], [32 // lanes, lanes], [1, 1], [1, 0])
        if PDL:
            gdc_wait()
        row = gl.arange(0, ROWS, gl.SliceLayout(0, layout))
        total = gl.zeros([AT_A_TIME, ROWS], gl.float32, layout)
        for first in range(0, TILES, AT_A_TIME):
            tile = first + gl.arange(0, AT_A_TIME, gl.SliceLayout(1, layout))
            place = divisor[0] + tile[:, None] * ROWS + row[None, :]
            # Past L1, which does not see what other SMs wrote.
            total += gl.load(place, mask=(tile < TILES)[:, None], other=0.0, cache_modifier=".cg")
        factors.store(gl.rsqrt(gl.sum(total, 0) / SIZE + divisor[1]))
        gl.thread_barrier()
        mbarrier.arrive(found, count=1)


@gluon.jit
def _places(parts, WIDE: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    column = gl.arange(0, WIDE, gl.SliceLayout(1, LAYOUT))
    row = gl.arange(0, ROWS, gl.SliceLayout(0, LAYOUT))
    return parts + row[None, :] * WIDE + column[:, None]


@gluon.jit
def _add_up(
    parts, PER: gl.constexpr, SPLITS: gl.constexpr, WIDE: gl.constexpr, ROWS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """What the programs of a tile have kept, in their order: the same sum each time."""
    layout: gl.constexpr = _along_columns(WIDE, WARPS)
    place = _places(parts, WIDE, ROWS, layout)
    total = gl.zeros([WIDE, ROWS], gl.float32, layout)
    for other in gl.static_range(SPLITS):
        # Past L1, which does not see what other SMs wrote.
        total += gl.load(place + other * PER * WIDE * ROWS, cache_modifier=".cg")
    return total


@gluon.jit
def _consume(
    w_ring, x_ring, ready, empty, begun, out, parts, arrivals, join, factors, found, rows, first,
    last, split, N: gl.constexpr, PER: gl.constexpr, WIDE: gl.constexpr, ROWS: gl.constexpr,
    SPLITS: gl.constexpr, SHARE: gl.constexpr, STAGES: gl.constexpr, ACTIVATION: gl.constexpr,
    DIVIDES: gl.constexpr, PDL: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    size: gl.constexpr = PER * WIDE * ROWS
    mbarrier.wait(begun, 0)
    if PDL:
        gdc_wait()  # before anything is written that kernels before may use
    for tile in range(first, last):
        if join is not None:
            _fetch_residual(join, tile * WIDE, rows, N, WIDE, ROWS, WARPS)
        sums = gl.zeros([WIDE, ROWS], gl.float32, layout)
        ups = sums
        for turn in range((tile - first) * SHARE, (tile - first + 1) * SHARE):
            stage = turn % STAGES
            mbarrier.wait(ready.index(stage), turn // STAGES & 1)
            inputs = x_ring.index(stage).permute((1, 0))
            sums = warpgroup_mma(w_ring.index(stage * PER), inputs, sums, is_async=True)
            # Not left to run beside the next: that one may be long in coming, and this place free.
            if ACTIVATION is None:
                sums = warpgroup_mma_wait(0, deps=(sums,))
            else:
                ups = warpgroup_mma(w_ring.index(stage * PER + 1), inputs, ups, is_async=True)
                sums, ups = warpgroup_mma_wait(0, deps=(sums, ups))
            gl.thread_barrier()  # all warps have read; one thread says so
            mbarrier.arrive(empty.index(stage), count=1)

        if DIVIDES:
            mbarrier.wait(found, 0)
        if SPLITS == 1:
            if join is None:
                _store(out, sums, ups, factors, tile * WIDE, rows, N // PER, DIVIDES, ACTIVATION)
            else:
                _store_joined(out, sums, join, tile, rows, N, WIDE, ROWS, WARPS)
        else:
            of_tile = parts + tile * SPLITS * size
            mine = of_tile + split * size
            gl.store(_places(mine, WIDE, ROWS, layout), sums)
            if ACTIVATION is not None:
                gl.store(_places(mine + WIDE * ROWS, WIDE, ROWS, layout), ups)
            gl.thread_barrier()
            if gl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLITS - 1:
                gl.store(arrivals + tile, 0)
                total = _add_up(of_tile, PER, SPLITS, WIDE, ROWS, WARPS)
                total_ups = total
                if ACTIVATION is not None:
                    total_ups = _add_up(of_tile + WIDE * ROWS, PER, SPLITS, WIDE, ROWS, WARPS)
                if join is None:
                    _store(
                        out, total, total_ups, factors, tile * WIDE, rows, N // PER, DIVIDES,
                        ACTIVATION,
                    )  # fmt: skip
                else:
                    _store_joined(out, total, join, tile, rows, N, WIDE, ROWS, WARPS)


@gluon.jit(do_not_specialize=["rows"])
def _stream(
    x, w, out, parts, arrivals, join, divisor, rows, N: gl.constexpr, TILES: gl.constexpr,
    GROUPS: gl.constexpr, SPLITS: gl.constexpr, SHARE: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, ACTIVATION: gl.constexpr, NORM_TILES: gl.constexpr,
    NORM_SIZE: gl.constexpr, AT_A_TIME: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    PER: gl.constexpr = 1 if ACTIVATION is None else 2
    WIDE: gl.constexpr = w.block_shape[0]
    BLOCK_K: gl.constexpr = w.block_shape[1]
    ROWS: gl.constexpr = x.block_shape[0]
    WARPS: gl.constexpr = gl.num_warps()
    w_ring = gl.allocate_shared_memory(w.dtype, [STAGES * PER, WIDE, BLOCK_K], w.layout)
    x_ring = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, BLOCK_K], x.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    begun = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    factors = gl.allocate_shared_memory(gl.float32, [ROWS], flat)  # with a divisor
    found = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(begun, count=1)
    mbarrier.init(found, count=1)
    fence_async_shared()
    gl.thread_barrier()
    group = gl.program_id(0) // SPLITS
    split = gl.program_id(0) % SPLITS
    first = group * TILES // GROUPS
    last = (group + 1) * TILES // GROUPS
    DIVIDES: gl.constexpr = divisor is not None
    gl.warp_specialize(
        [
            (_consume, (
                w_ring, x_ring, ready, empty, begun, out, parts, arrivals, join, factors, found,
                rows, first, last, split, N, PER, WIDE, ROWS, SPLITS, SHARE, STAGES, ACTIVATION,
                DIVIDES, PDL, WARPS,
            )),
            (_produce, (
                w, x, w_ring, x_ring, ready, empty, begun, first, last, split, N, PER, SHARE,
                STAGES, PDL,
            )),
            (_find_factors, (
                factors, divisor, found, NORM_TILES, NORM_SIZE, AT_A_TIME, PDL,
            )),
        ],
        [1, 1],
        [REGISTERS, REGISTERS],
    )  # fmt: skip


def padded_rows(rows: int) -> int:
    """Rows of x as the tensor cores take them."""
    return max(8, triton.next_power_of_2(rows))


def _descriptor(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = NVMMASharedLayout.get_default_for([rows, columns], _DTYPES[tensor.dtype])
    return TensorDescriptor(tensor, [*tensor.shape], [tensor.shape[1], 1], [rows, columns], layout)


def stream_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    arrivals: torch.Tensor,
    config: SkinnyConfig,
    out: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    join: Join | None = None,
    divisor: Divisor | None = None,
) -> torch.Tensor:
    """What ``skinny_linear`` does with a config of this kernel.

    For K a multiple of 8 and addresses that are multiples of 16, on a GPU of compute capability
    9.0. With a ``divisor`` x are rows that have yet to be divided by it, before the activation.
    With a ``join``, which goes with no activation, the product joins a residual, and the result is
    the residual times the weight: what a second product takes with a divisor, and is then of the
    residual's RMS norm but for where it is rounded. Raises ValueError for a config that does not
    suit.
    """
    assert join is None or (activation is None and x.dtype == torch.bfloat16)
    assert x.is_contiguous()
    rows, k = x.shape
    n = w.shape[0]
    per_column = 1 if activation is None else 2  # rows of w
    width, wide = n // per_column, config.block_n // per_column
    padded = padded_rows(rows)
    k_tiles = triton.cdiv(k, config.block_k)
    ring = config.stages * (config.block_n + padded) * config.block_k * 2
    suits = (
        rows <= MAX_ROWS
        and 0 < ring <= _RING_BYTES
        and config.warps in _REGISTERS
        and config.block_n * padded <= 128 * 32 * config.warps
        and wide in (64, 128, 256)
        and wide >= 16 * config.warps
        and config.block_k in (64, 128, 256)
        and 1 <= config.splits <= k_tiles
        and k % 8 == 0
    )
    if not suits:
        raise ValueError(f"{config} does not suit {rows} rows, K = {k}, activation {activation}")
    if out is None:
        out = x.new_empty(rows, width)
    tiles = triton.cdiv(width, wide)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    groups = min(tiles, max(processors // config.splits, 1))
    parts = out
    if config.splits > 1:
        size = tiles * config.splits * config.block_n * padded
        parts = x.new_empty(size, dtype=torch.float32)
    registers = _REGISTERS[config.warps] if padded <= 16 else _MORE_REGISTERS
    if config.block_n * padded // (32 * config.warps) > 64:
        registers = _MOST_REGISTERS
    stages = config.stages
    if join is not None and config.splits == 1:
        left = _SHARED_BYTES - 2 * config.block_n * padded
        stages = min(stages, left // (ring // stages))
    norm_tiles = 0 if divisor is None else divisor.squares.shape[0]
    _stream[(groups * config.splits,)](
        _descriptor(x, padded, config.block_k),
        _descriptor(w, wide, config.block_k),
        out,
        parts,
        arrivals,
        join,
        divisor,
        rows,
        N=n,
        TILES=tiles,
        GROUPS=groups,
        SPLITS=config.splits,
        SHARE=triton.cdiv(k_tiles, config.splits),
        STAGES=stages,
        REGISTERS=_PRODUCER_REGISTERS,
        ACTIVATION=activation,
        NORM_TILES=norm_tiles,
        NORM_SIZE=k if norm_tiles else 0,
        AT_A_TIME=_SQUARES // padded,
        num_warps=config.warps,
        maxnreg=registers,
        **launch_options(),
    )
    return out


def joined_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    arrivals: torch.Tensor,
    config: SkinnyConfig,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    scale: float,
    eps: float,
) -> tuple[torch.Tensor, Divisor]:
    """Adds ``scale * x @ w.T`` to hidden in place. Returns the RMS norm of that with what it has
    yet to be divided by, as ``stream_linear`` takes it. For hidden and weight see Join."""
    tiles = triton.cdiv(w.shape[0], config.block_n)
    squares = x.new_empty(tiles, padded_rows(x.shape[0]), dtype=torch.float32)
    join = Join(hidden, weight, squares, scale)
    return stream_linear(x, w, arrivals, config, join=join), Divisor(squares, eps)
