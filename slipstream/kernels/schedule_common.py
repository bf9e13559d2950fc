# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the kernels share that say which keys and values programs of decode attention read."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import launch_options
from slipstream.kernels.paged_common import MaskKind, first_visible

CHUNK = 32  # items that one program of such a kernel provides for
_LEAST_ROWS = 64  # compiled for; fewer are padded


def compiled_for(
    n: int, items: torch.Tensor, tile: int, mask_kind: MaskKind, mask_size: int
) -> dict[str, Any]:
    """Keyword arguments of a launch for up to ``n`` sequences; see ``schedule_decodes``."""
    return {
        "TILE": tile,
        "MASK": mask_kind,
        "MASK_SIZE": mask_size,
        "ROWS": max(_LEAST_ROWS, triton.next_power_of_2(n)),
        "CHUNK": CHUNK,
        "FIELDS": items.shape[1],
        "num_warps": 8,
        **launch_options(),
    }


@triton.jit
def load_sequences(
    rows,
    slots,
    positions,
    n,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    MASK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of each sequence [ROWS] its row, slot, end, first tile, and tiles that are read: none of
    padding, whose row is below zero."""
    index = tl.arange(0, ROWS)
    row = tl.load(rows + index, index < n, other=-1)
    real = row >= 0
    slot = tl.load(slots + index, real, other=0)
    end = tl.load(positions + row, real, other=0) + 1
    first = first_visible(end - 1, MASK, MASK_SIZE) // TILE
    return row, slot, end, first, tl.where(real, tl.cdiv(end, TILE) - first, 0)


@triton.jit
def picked(here, values):
    """Of each row of ``here`` the one of ``values`` where it is true, or zero."""
    return tl.sum(tl.where(here, values[None, :], 0), 1)


@triton.jit
def store_items(
    items,
    item,
    most,
    here,
    row,
    slot,
    end,
    kv_head,
    from_tile,
    to_tile,
    first_item,
    parts,
    FIELDS: tl.constexpr,
):
    """Records [CHUNK] of the items below ``most``; here: which sequence [CHUNK, ROWS] is whose. For
    their fields see DecodeSchedule."""
    record = items + item * FIELDS
    used = item < most
    tl.store(record, picked(here, row), used)
    tl.store(record + 1, picked(here, slot), used)
    tl.store(record + 2, picked(here, end), used)
    tl.store(record + 3, kv_head, used)
    tl.store(record + 4, from_tile, used)
    tl.store(record + 5, to_tile, used)
    tl.store(record + 6, first_item, used)
    tl.store(record + 7, parts, used)
