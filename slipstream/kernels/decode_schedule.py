# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which keys and values each program of an attention kernel reads.

A program reads a KV head of a sequence, or a part of it where the sequence is long beside what the
batch has for each of the programs that run at a time; or it reads several, see ``stream_schedule``.
It is computed on the device, once a step, from the lengths that are there; padding gets no program.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs
from slipstream.kernels.paged_common import MaskKind
from slipstream.kernels.schedule_common import (
    CHUNK,
    compiled_for,
    load_sequences,
    picked,
    store_items,
)
from slipstream.kernels.stream_schedule import schedule_shares

_MOST_WAVES = 6  # of parts: of fewer than two of wholes each is cut into four at most
_MOST_PARTS = 128  # the last program to finish reads those of all
FIELDS = 8  # of an item


@dataclass(frozen=True, slots=True)
class DecodeSchedule:
    """What the programs of launches over one batch do.

    items: int32 ``[most, FIELDS]``, one for each program: the row of the batch, the slot, the end
    (its position and one), the KV head, the first tile to read and the one to stop at, the item
    that reads the first part of the same, and how many parts there are. No parts: nothing to do.
    ``running``: programs that run at a time; ``num_sms``: of the GPU.
    programs: for ``stream_decode`` alone, int32 ``[running, 2]``, the first item of each program
    and the one to stop at; those between all have something to do.
    """

    items: torch.Tensor
    kv_heads: int
    running: int
    num_sms: int
    programs: torch.Tensor | None = None

    @property
    def streamed(self) -> bool:
        return self.programs is not None

    def most_items(self, n: int) -> int:
        """Of ``n`` sequences."""
        return _most_items(n, self.kv_heads, self.running, self.streamed)


def decode_schedule(
    n: int,
    kv_heads: int,
    running: int,
    num_sms: int,
    device: torch.device,
    *,
    streamed: bool = False,
) -> DecodeSchedule:
    """For batches of up to ``n`` sequences. streamed: for ``stream_decode``."""
    most = _most_items(n, kv_heads, running, streamed)
    items = torch.zeros((most, FIELDS), dtype=torch.int32, device=device)
    programs = torch.zeros((running, 2), dtype=torch.int32, device=device) if streamed else None
    return DecodeSchedule(items, kv_heads, running, num_sms, programs)


def _most_items(n: int, kv_heads: int, running: int, streamed: bool) -> int:
    """Each is cut once a share of all tiles, and of such there are so many in them."""
    once = streamed or n * kv_heads <= running
    return n * kv_heads + (running if once else _MOST_WAVES * running)


def schedule_decodes(
    rows: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    schedule: DecodeSchedule,
    *,
    tile: int,
    mask_kind: MaskKind,
    mask_size: int,
) -> None:
    """Fills the schedule for ``decode_attention`` of as many sequences with that mask.

    rows: int32 ``[n]``, each sequence's row of a batch, or -1, which is left out. slots: int32
    ``[n]``, its row of block tables. positions: int32 ``[tokens]``, of the batch. tile: positions
    that a program reads at a time.
    """
    n = rows.shape[0]
    most = schedule.most_items(n)
    assert most <= schedule.items.shape[0], "the schedule is too small"
    options = compiled_for(n, schedule.items, tile, mask_kind, mask_size)
    if schedule.programs is not None:
        schedule_shares(
            rows,
            slots,
            positions,
            schedule.items,
            schedule.programs,
            most,
            schedule.kv_heads,
            options,
        )
        return
    _schedule[(triton.cdiv(most, CHUNK),)](
        rows,
        slots,
        positions,
        schedule.items,
        n,
        most,
        schedule.kv_heads,
        schedule.running,
        schedule.num_sms,
        MOST_PARTS=_MOST_PARTS,
        **options,
    )


@triton.jit
def _splits(pairs, running):
    """Into how many parts to cut each of ``pairs``, so that the last wave is not nearly empty."""
    best = pairs * 0 + 1
    least = tl.cdiv(pairs, running) * 1.0 + 0.05
    for splits in tl.static_range(2, 5):
        waves = tl.cdiv(pairs * splits, running) / splits + 0.05 * splits
        best = tl.where(waves < least, splits, best)
        least = tl.minimum(waves, least)
    return best


@triton.jit(
    do_not_specialize=["n", "most", "kv_heads", "running", "num_sms"],
    do_not_specialize_on_alignment=["rows", "slots", "positions"],
)
def _schedule(
    rows,
    slots,
    positions,
    items,
    n,
    most,
    kv_heads,
    running,
    num_sms,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    FIELDS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    row, slot, end, first, tiles = load_sequences(
        rows, slots, positions, n, TILE, MASK, MASK_SIZE, ROWS
    )
    real = row >= 0
    # As many items as run at a time, so that all finish together; a few more where they would fill
    # a second wave badly. Once every SM has work, only what is long is cut: each part costs writing
    # and reading it again.
    in_all = tl.sum(tiles, 0) * kv_heads
    pairs = tl.sum(real.to(tl.int32), 0) * kv_heads
    share = tl.cdiv(in_all, running)
    if (pairs > running) & (pairs < 2 * running):
        share = tl.cdiv(in_all, pairs * _splits(pairs, running))
    share = tl.maximum(share, tl.where(pairs >= num_sms, 20, 1))
    parts = tl.minimum(tl.cdiv(tiles, share), MOST_PARTS)
    until = tl.cumsum(parts, 0) * kv_heads

    item = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    sequence = tl.sum((until[None, :] <= item[:, None]).to(tl.int32), 1)
    here = sequence[:, None] == tl.arange(0, ROWS)[None, :]
    its_parts = picked(here, parts)
    its_tiles = picked(here, tiles)
    its_first = picked(here, first)
    before = picked(here, until - parts * kv_heads)
    rest = item - before
    kv_head = rest // tl.maximum(its_parts, 1)
    part = rest - kv_head * its_parts
    from_tile = its_first + part * its_tiles // tl.maximum(its_parts, 1)
    to_tile = its_first + (part + 1) * its_tiles // tl.maximum(its_parts, 1)
    store_items(
        items, item, most, here, row, slot, end, kv_head, from_tile, to_tile, item - part,
        its_parts, FIELDS,
    )  # fmt: skip
