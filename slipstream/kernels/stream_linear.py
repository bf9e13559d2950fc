# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``x @ w.T`` for a handful of rows on Hopper: w streams through a ring in shared memory.

One warp of a program keeps the ring full (TMA), the others multiply what has arrived (wgmma, w as
the left operand). Nearly all of an SM's shared memory is in flight at any time, the first of it
before the kernel that makes x has ended. A program multiplies a tile of N by its part of K, or,
where there are more tiles than SMs, several tiles in turn through the same ring.
"""

from __future__ import annotations

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
_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


# Tiles of w and the warps that multiply them.
_FEW_ROWS = ((64, 256, 4), (128, 128, 4), (256, 64, 4))
_MORE_ROWS = ((64, 128, 4), (64, 256, 4), (128, 128, 8), (128, 64, 8), (256, 64, 8))
_MOST_ROWS = ((64, 64, 4), (128, 128, 4))


def streamed_candidates(
    rows: int, n: int, k: int, activation: str | None, processors: int
) -> list[SkinnyConfig]:
    """Configurations worth timing for ``[rows, k]`` inputs and ``[n, k]`` weights on so many
    multiprocessors: those that keep enough of them busy. All give the right result."""
    padded = _padded(rows)
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
def _store(out, sums, ups, start, rows, WIDTH: gl.constexpr, ACTIVATION: gl.constexpr):
    """sums, ups: ``[columns, rows]``, of the columns of out from ``start`` on."""
    layout: gl.constexpr = sums.type.layout
    value = sums.to(out.dtype.element_ty)
    if ACTIVATION is not None:
        value = activated_product(value, ups.to(out.dtype.element_ty), ACTIVATION)
    column = start + gl.arange(0, sums.shape[0], gl.SliceLayout(1, layout))
    row = gl.arange(0, sums.shape[1], gl.SliceLayout(0, layout))
    stored = (column < WIDTH)[:, None] & (row < rows)[None, :]
    gl.store(out + row[None, :] * WIDTH + column[:, None], value, mask=stored)


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
    lanes: gl.constexpr = min(WIDE // 4, 32)
    layout: gl.constexpr = gl.BlockedLayout([4, 1], [lanes, 32 // lanes], [1, WARPS], [0, 1])
    place = _places(parts, WIDE, ROWS, layout)
    total = gl.zeros([WIDE, ROWS], gl.float32, layout)
    for other in gl.static_range(SPLITS):
        # Past L1, which does not see what other SMs wrote.
        total += gl.load(place + other * PER * WIDE * ROWS, cache_modifier=".cg")
    return total


@gluon.jit
def _consume(
    w_ring, x_ring, ready, empty, begun, out, parts, arrivals, rows, first, last, split,
    N: gl.constexpr, PER: gl.constexpr, WIDE: gl.constexpr, ROWS: gl.constexpr,
    SPLITS: gl.constexpr, SHARE: gl.constexpr, STAGES: gl.constexpr, ACTIVATION: gl.constexpr,
    PDL: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    size: gl.constexpr = PER * WIDE * ROWS
    mbarrier.wait(begun, 0)
    if PDL:
        gdc_wait()  # before anything is written that kernels before may use
    for tile in range(first, last):
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

        if SPLITS == 1:
            _store(out, sums, ups, tile * WIDE, rows, N // PER, ACTIVATION)
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
                _store(out, total, total_ups, tile * WIDE, rows, N // PER, ACTIVATION)


@gluon.jit(do_not_specialize=["rows"])
def _stream(
    x, w, out, parts, arrivals, rows, N: gl.constexpr, TILES: gl.constexpr, GROUPS: gl.constexpr,
    SPLITS: gl.constexpr, SHARE: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    ACTIVATION: gl.constexpr, PDL: gl.constexpr,
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
    mbarrier.init(begun, count=1)
    fence_async_shared()
    gl.thread_barrier()
    group = gl.program_id(0) // SPLITS
    split = gl.program_id(0) % SPLITS
    first = group * TILES // GROUPS
    last = (group + 1) * TILES // GROUPS
    gl.warp_specialize(
        [
            (_consume, (
                w_ring, x_ring, ready, empty, begun, out, parts, arrivals, rows, first, last, split,
                N, PER, WIDE, ROWS, SPLITS, SHARE, STAGES, ACTIVATION, PDL, WARPS,
            )),
            (_produce, (
                w, x, w_ring, x_ring, ready, empty, begun, first, last, split, N, PER, SHARE,
                STAGES, PDL,
            )),
        ],
        [1],
        [REGISTERS],
    )  # fmt: skip


def _padded(rows: int) -> int:
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
) -> torch.Tensor:
    """What ``skinny_linear`` does with a config of this kernel.

    For K a multiple of 8 and addresses that are multiples of 16, on a GPU of compute capability
    9.0. Raises ValueError for a config that does not suit.
    """
    rows, k = x.shape
    n = w.shape[0]
    per_column = 1 if activation is None else 2  # rows of w
    width, wide = n // per_column, config.block_n // per_column
    padded = _padded(rows)
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
    _stream[(groups * config.splits,)](
        _descriptor(x, padded, config.block_k),
        _descriptor(w, wide, config.block_k),
        out,
        parts,
        arrivals,
        rows,
        N=n,
        TILES=tiles,
        GROUPS=groups,
        SPLITS=config.splits,
        SHARE=triton.cdiv(k_tiles, config.splits),
        STAGES=config.stages,
        REGISTERS=_PRODUCER_REGISTERS,
        ACTIVATION=activation,
        num_warps=config.warps,
        maxnreg=registers,
        **launch_options(),
    )
    return out
