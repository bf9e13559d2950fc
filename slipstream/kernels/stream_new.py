# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``stream_decode`` does about new tokens whose queries and keys are as they were projected.

Their keys and values belong to the last tile of their sequence, where the cache has none of them
yet: they are put into the ring instead, so that all that follows is as if they had been stored.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from slipstream.kernels.qkv import rotated


@gluon.jit
def _root(x, eps):
    """What a norm multiplies heads [rows, dim] by [rows, 1]."""
    SIZE: gl.constexpr = x.shape[1]
    wide = x.to(gl.float32)
    return gl.rsqrt(gl.sum(wide * wide, 1) / SIZE + eps)[:, None]


@gluon.jit
def _normed(x, root, weight, dims):
    weights = gl.load(weight + dims).to(gl.float32)[None, :]
    return (x.to(gl.float32) * root * weights).to(x.dtype)


@gluon.jit
def _partners(dims, ROTATED: gl.constexpr, INTERLEAVED: gl.constexpr, AT_ONCE: gl.constexpr):
    """Which entry each is rotated with; past ROTATED itself. AT_ONCE: successive dims of a
    thread."""
    inside = dims < ROTATED
    if INTERLEAVED:
        partners = gl.where(inside, dims ^ 1, dims)
    else:
        HALF: gl.constexpr = ROTATED // 2
        partners = gl.where(dims < HALF, dims + HALF, gl.where(inside, dims - HALF, dims))
        if HALF % AT_ONCE == 0:
            partners = gl.max_contiguous(gl.multiple_of(partners, AT_ONCE), AT_ONCE)
    return partners


@gluon.jit
def unprepared(
    heads, in_use, dims, cos, sin, token, ROTATED: gl.constexpr, INTERLEAVED: gl.constexpr,
    AT_ONCE: gl.constexpr,
):  # fmt: skip
    """What ``prepared`` makes of heads [rows, dim] at ``heads`` [rows, 1]: they, the entries that
    they are rotated with, and cosines and sines. Zeros where not in_use [rows, 1]. A function of
    its own, so that all of several is asked for before any of it is waited for. cos, sin: [tokens,
    ROTATED]."""
    x = gl.load(heads + dims[None, :], mask=in_use, other=0.0)
    y, cosines, sines = x, x, x
    if ROTATED > 0:
        partners = _partners(dims, ROTATED, INTERLEAVED, AT_ONCE)
        y = gl.load(heads + partners[None, :], mask=in_use, other=0.0)
        turns = token * ROTATED + dims
        inside = dims < ROTATED
        cosines = gl.load(cos + turns, mask=inside, other=0.0)[None, :]
        sines = gl.load(sin + turns, mask=inside, other=0.0)[None, :]
    return x, y, cosines, sines


@gluon.jit
def prepared(
    raw, in_use, dims, weight, eps, ROTATED: gl.constexpr, INTERLEAVED: gl.constexpr,
    NORM: gl.constexpr, AT_ONCE: gl.constexpr,
):  # fmt: skip
    """What is ``unprepared``, normalised and rotated as ``prepare_qkv`` does it. NORM: "", "before"
    or "after" the rotation."""
    x, y, cosines, sines = raw
    if NORM == "before":
        root = _root(x, eps)
        x = _normed(x, root, weight, dims)
        if ROTATED > 0:
            partners = _partners(dims, ROTATED, INTERLEAVED, AT_ONCE)
            y = _normed(y, root, weight, partners)
    if ROTATED > 0:
        x = gl.where((dims < ROTATED)[None, :], rotated(x, y, cosines, sines), x)
    if NORM == "after":
        x = _normed(x, _root(x, eps), weight, dims)
    if NORM != "":
        x = gl.where(in_use, x, gl.zeros_like(x))  # without an eps they would be NaN
    return x


@gluon.jit
def _put(tile, at, row):
    """Replaces row ``at`` of a tile in shared memory. row: as many copies of it as are looked at
    together."""
    ROWS: gl.constexpr = row.shape[0]
    layout: gl.constexpr = row.type.layout
    here = gl.arange(0, ROWS, gl.SliceLayout(1, layout)) == at % ROWS
    for number in gl.static_range(tile.shape[0] // ROWS):
        if at // ROWS == number:
            part = tile.slice(number * ROWS, ROWS)
            part.store(gl.where(here[:, None], row, part.load(layout)))


@gluon.jit
def put_newest(keys, values, at, key, value):
    """Puts a token's key and value at position ``at`` of a tile that has arrived."""
    _put(keys, at, key)
    _put(values, at, value)
    fence_async_shared()  # the tensor cores read past where threads write
    gl.thread_barrier()
