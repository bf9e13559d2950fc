# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Equal shares of all keys and values for the programs of ``stream_decode``, one for each SM.

The tiles of all KV heads of all sequences lie in a row, which is cut once a share. An item is what
a program reads of one KV head of a sequence. The item of program p that reads pair j, a pair being
a sequence and a KV head, has the number j + p: numbers grow along the row, so that the items of a
program have consecutive numbers, and so have the parts of a pair. No two have the same; where a cut
lies between two pairs, a number is left out.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs
from slipstream.kernels.schedule_common import CHUNK, load_sequences, picked, store_items


def schedule_shares(
    rows: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    items: torch.Tensor,
    programs: torch.Tensor,
    most: int,
    kv_heads: int,
    options: dict[str, Any],
) -> None:
    """Fills up to ``most`` items, and programs, of a DecodeSchedule. rows, slots, positions: see
    ``schedule_decodes``. options: by ``compiled_for``."""
    _shares[(triton.cdiv(most, CHUNK),)](
        rows,
        slots,
        positions,
        items,
        programs,
        rows.shape[0],
        most,
        kv_heads,
        programs.shape[0],
        **options,
    )


@triton.jit
def _last_before(beginnings, real, rank, limits):
    """Of each of ``limits`` [CHUNK], where in ``real`` rows the last beginning up to it is, as a
    mask [CHUNK, ROWS]. Beginnings grow. rank: real rows up to each."""
    before = real[None, :] & (beginnings[None, :] <= limits[:, None])
    count = tl.sum(before.to(tl.int32), 1)
    return real[None, :] & (rank[None, :] == count[:, None])


@triton.jit(
    do_not_specialize=["n", "most", "kv_heads", "running"],
    do_not_specialize_on_alignment=["rows", "slots", "positions"],
)
def _shares(
    rows,
    slots,
    positions,
    items,
    programs,
    n,
    most,
    kv_heads,
    running,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIELDS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    row, slot, end, first, tiles = load_sequences(
        rows, slots, positions, n, TILE, MASK, MASK_SIZE, ROWS
    )
    real = row >= 0
    rank = tl.cumsum(real.to(tl.int32), 0)
    pair = (rank - 1) * kv_heads  # the first of each row
    begin = (tl.cumsum(tiles, 0) - tiles) * kv_heads
    in_all = tl.sum(tiles, 0) * kv_heads
    share = tl.maximum(tl.cdiv(in_all, running), 1)
    first_item = pair + begin // share

    item = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    here = _last_before(first_item, real, rank, item)
    its_tiles = picked(here, tiles)
    # What follows counts from the share in which the row begins.
    its_item = picked(here, first_item)
    offset = picked(here, begin % share)
    number = item - its_item
    # The last KV head whose first item, kv_head + (offset + kv_head * its_tiles) // share, is not
    # behind this one.
    kv_head = ((number + 1) * share - offset - 1) // (share + its_tiles)
    head_begin = offset + kv_head * its_tiles
    first_share = head_begin // share
    from_tile = tl.maximum((number - kv_head) * share - head_begin, 0)
    to_tile = tl.minimum((number - kv_head + 1) * share - head_begin, its_tiles)
    parts = (head_begin + its_tiles - 1) // share - first_share + 1
    parts = tl.where((kv_head < kv_heads) & (from_tile < to_tile), parts, 0)
    its_first = picked(here, first)
    store_items(
        items, item, most, here, row, slot, end, kv_head, its_first + from_tile,
        its_first + to_tile, its_item + kv_head + first_share, parts, FIELDS,
    )  # fmt: skip

    program = item  # a program provides for as many of the attention's
    start = program * share
    has_any = start < in_all
    last = tl.minimum(start + share, in_all) - 1
    here = _last_before(begin, real, rank, start)
    first_of = program + picked(here, pair)
    first_of += (start - picked(here, begin)) // tl.maximum(picked(here, tiles), 1)
    here = _last_before(begin, real, rank, last)
    last_of = program + picked(here, pair)
    last_of += (last - picked(here, begin)) // tl.maximum(picked(here, tiles), 1)
    used = program < running
    tl.store(programs + 2 * program, tl.where(has_any, first_of, 0), used)
    tl.store(programs + 2 * program + 1, tl.where(has_any, last_of + 1, 0), used)
