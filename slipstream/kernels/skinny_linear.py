# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``x @ w.T`` for a handful of rows: bound by reading w, which is read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import triton
import triton.language as tl

from slipstream.kernels.activation import ACTIVATIONS, activated_product
from slipstream.kernels.overlap import await_inputs, launch_options

MAX_ROWS = 128
_MAX_TILED_ROWS = 64  # from there on streaming alone was ever faster than torch


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """How the work is cut: ``[block_n, block_k]`` of w at a time, ``stages`` of them on their way,
    each K shared out among ``splits`` programs. ``kernel``: ``tiles`` takes w through shared memory
    to the tensor cores, ``vector`` through registers, for one row of x; ``stream``: see
    ``stream_linear``."""

    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int
    kernel: Literal["tiles", "vector", "stream"] = "tiles"


_VECTOR = (
    SkinnyConfig(8, 512, 1, 4, 3, "vector"),
    SkinnyConfig(2, 1024, 1, 4, 3, "vector"),
    SkinnyConfig(4, 1024, 1, 4, 3, "vector"),
    SkinnyConfig(2, 2048, 1, 4, 3, "vector"),
    SkinnyConfig(4, 2048, 1, 8, 3, "vector"),
)
_FEW_ROWS = (
    *(SkinnyConfig(64, 128, splits, 4, 5) for splits in (1, 2, 4)),
    SkinnyConfig(128, 128, 1, 8, 4),
    SkinnyConfig(128, 64, 1, 4, 6),
)
_MORE_ROWS = (
    *(SkinnyConfig(64, 128, splits, 4, 4) for splits in (1, 2, 4)),
    *(SkinnyConfig(128, 64, splits, 8, 6) for splits in (1, 2)),
    SkinnyConfig(128, 128, 4, 8, 3),
    SkinnyConfig(256, 64, 1, 8, 4),
)


def candidates(rows: int, w: torch.Tensor, activation: str | None = None) -> list[SkinnyConfig]:
    """Configurations worth timing for up to so many rows; all give the right result."""
    n, k = w.shape
    tiles = _FEW_ROWS if rows <= 16 else _MORE_ROWS if rows <= _MAX_TILED_ROWS else ()
    streamed: list[SkinnyConfig] = []
    if streams(w.device):
        from slipstream.kernels.stream_linear import streamed_candidates

        processors = torch.cuda.get_device_properties(w.device).multi_processor_count
        streamed = streamed_candidates(rows, n, k, activation, processors)
        # Streaming was faster than the larger tiles wherever both were measured.
        tiles = tuple(config for config in tiles if config.block_n == 64)
    return [
        *streamed,
        *(config for config in _VECTOR if rows == 1 and config.block_k <= max(k, 1024)),
        *(config for config in tiles if config.block_k * config.splits <= max(k, 128)),
    ]


@cache
def streams(device: torch.device) -> bool:
    """Whether ``stream_linear`` runs there: its instructions are Hopper's alone, and its language
    comes with some versions of the compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    try:
        import slipstream.kernels.stream_linear  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


@triton.jit
def _part_of(weights, entry, EVEN: tl.constexpr, K: tl.constexpr):
    """Columns ``entry`` of rows of w, read once and not to be kept in caches."""
    if EVEN:
        return tl.load(weights + entry[None, :], eviction_policy="evict_first")
    else:
        inside = (entry < K)[None, :]
        return tl.load(
            weights + entry[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        )


@triton.jit
def _rows_of(x, row, rows, entry, EVEN: tl.constexpr, K: tl.constexpr):
    """Columns ``entry`` of x, as columns."""
    used = (row < rows)[None, :]
    if not EVEN:
        used = used & (entry < K)[:, None]
    return tl.load(x + row[None, :] * K + entry[:, None], mask=used, other=0.0)


@triton.jit
def _rows_of_tile(tile, N: tl.constexpr, BLOCK_N: tl.constexpr, ACTIVATION: tl.constexpr):
    """Which rows of w: with an activation, half of them gates and then their ups."""
    place = tl.arange(0, BLOCK_N)
    if ACTIVATION is None:
        return tile * BLOCK_N + place
    else:
        half: tl.constexpr = BLOCK_N // 2
        return tile * half + place % half + place // half * (N // 2)


@triton.jit
def _store(
    out, sums, tile, row, rows, N: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """sums: ``[BLOCK_N, ROWS]``, of the rows of w that ``_rows_of_tile`` gives."""
    value = sums.to(out.dtype.element_ty)
    width: tl.constexpr = N if ACTIVATION is None else N // 2
    if ACTIVATION is None:
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    else:
        half: tl.constexpr = BLOCK_N // 2
        gate, up = tl.split(value.reshape(2, half, ROWS).permute(1, 2, 0))
        value = activated_product(gate, up, ACTIVATION)
        column = tile * half + tl.arange(0, half)
    stored = (column < width)[:, None] & (row < rows)[None, :]
    tl.store(out + row[None, :] * width + column[:, None], value, mask=stored)


@triton.jit(do_not_specialize=["rows"])
def _tiles(
    x, w, out, parts, arrivals, rows, N: tl.constexpr, K: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    split = tl.program_id(1)
    share: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    even: tl.constexpr = K % (BLOCK_K * SPLITS) == 0
    row = tl.arange(0, ROWS)
    of_w = _rows_of_tile(tile, N, BLOCK_N, ACTIVATION)
    weights = w + (of_w % N).to(tl.int64)[:, None] * K  # past the end: read, never stored
    # The first of the weights travel while the kernel that makes x still runs.
    first = split * share + tl.arange(0, BLOCK_K)
    part = _part_of(weights, first, even, K)
    await_inputs(PDL)
    sums = tl.dot(
        part, _rows_of(x, row, rows, first, even, K), tl.zeros([BLOCK_N, ROWS], tl.float32)
    )
    for start in range(BLOCK_K, share, BLOCK_K):
        entry = split * share + start + tl.arange(0, BLOCK_K)
        part = _part_of(weights, entry, even, K)
        sums = tl.dot(part, _rows_of(x, row, rows, entry, even, K), sums)
    if SPLITS == 1:
        _store(out, sums, tile, row, rows, N, BLOCK_N, ROWS, ACTIVATION)
    else:
        place = (tile * SPLITS * ROWS + row[None, :]) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        tl.store(parts + place + split * ROWS * BLOCK_N, sums)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(arrivals + tile, 0)
            # In the order of the splits, whoever comes last: the same sum each time.
            total = tl.zeros([BLOCK_N, ROWS], tl.float32)
            for other in tl.static_range(SPLITS):
                # Past L1, which does not see what other SMs wrote.
                total += tl.load(parts + place + other * ROWS * BLOCK_N, cache_modifier=".cg")
            _store(out, total, tile, row, rows, N, BLOCK_N, ROWS, ACTIVATION)


@triton.jit
def _vector(
    x, w, out, N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    of_w = _rows_of_tile(tile, N, BLOCK_N, ACTIVATION)
    weights = w + (of_w % N).to(tl.int64)[:, None] * K
    # The first of the weights travel while the kernel that makes x still runs.
    entry = tl.arange(0, BLOCK_K)
    part = _part_of(weights, entry, K % BLOCK_K == 0, K)
    await_inputs(PDL)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(BLOCK_K, K, BLOCK_K):
        inputs = tl.load(x + entry).to(tl.float32)
        now = part
        following = start + tl.arange(0, BLOCK_K)
        part = _part_of(weights, following, K % BLOCK_K == 0, K)
        sums += now.to(tl.float32) * inputs[None, :]
        entry = following
    inputs = tl.load(x + entry, mask=entry < K, other=0.0).to(tl.float32)
    sums += part.to(tl.float32) * inputs[None, :]
    total = tl.sum(sums, 1)[:, None]
    _store(out, total, tile, tl.arange(0, 1), 1, N, BLOCK_N, 1, ACTIVATION)


def skinny_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    arrivals: torch.Tensor,
    config: SkinnyConfig,
    out: torch.Tensor | None = None,
    *,
    activation: str | None = None,
) -> torch.Tensor:
    """``x @ w.T`` as ``[rows, N]``, summed in float32 in an order that config alone decides.

    x: ``[rows, K]``, contiguous, up to MAX_ROWS rows; w: ``[N, K]``, contiguous, as ``nn.Linear``
    keeps it; both bfloat16 or float16. arrivals: int32, at least ``[ceil(N / block_n)]``, the
    caller's: zero before the first call, and zero again after each. Two calls that may run at once
    need two of them. With an ``activation``, one of ACTIVATIONS, the first half of w are gates and
    the result is what ``gated_activation`` makes of the product, ``[rows, N / 2]``. ``out``, if
    given, takes the result. Raises ValueError for an unknown activation.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation: {activation!r} is none of {', '.join(ACTIVATIONS)}")
    if config.kernel == "stream":
        from slipstream.kernels.stream_linear import stream_linear

        return stream_linear(x, w, arrivals, config, out, activation=activation)
    assert x.is_contiguous()
    rows, k = x.shape
    n = w.shape[0]
    per_column = 1 if activation is None else 2  # rows of w
    width = n // per_column
    if out is None:
        out = x.new_empty(rows, width)
    grid = (triton.cdiv(width, config.block_n // per_column), config.splits)
    shape = {
        "N": n,
        "K": k,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "ACTIVATION": activation,
    }
    options = {"num_warps": config.warps, "num_stages": config.stages}
    options |= launch_options()
    if config.kernel == "vector":
        _vector[grid[:1]](x, w, out, **shape, **options)
        return out
    padded = max(16, triton.next_power_of_2(rows))
    parts = out
    if config.splits > 1:
        parts = x.new_empty(config.splits * grid[0] * config.block_n * padded, dtype=torch.float32)
    _tiles[grid](
        x, w, out, parts, arrivals, rows, SPLITS=config.splits, ROWS=padded, **shape, **options
    )
    return out
