# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Block tables of the sequences of a step, in its order, for kernels that know no slots."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options
from slipstream.kernels.paged_common import MaskKind, first_visible

_TILE = 1024  # entries copied at a time


def gather_tables(
    block_tables: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    per_block: int,
    mask_kind: MaskKind,
    mask_size: int,
) -> None:
    """Writes each sequence's length, and its blocks up to its last position.

    block_tables: int32 ``[max_num_seqs, blocks]``. rows, slots: int32 ``[n]``, as decode_attention
    takes them; padding gets a length of 1 and a block that exists. positions: int32 ``[tokens]``.
    tables: int32 ``[n or more, blocks]``. lengths: int32 ``[n or more]``. In place of blocks that
    lie below all that the mask shows, which may be others' by now, is the first one that does not.
    """
    assert tables.shape[1] == block_tables.shape[1]
    n = rows.shape[0]
    assert n <= tables.shape[0]
    _gather[(n,)](
        block_tables, rows, slots, positions, tables, lengths,
        block_tables.stride(0), tables.stride(0),
        MASK=mask_kind, MASK_SIZE=mask_size, PER_BLOCK=per_block, TILE=_TILE,
        num_warps=4, **launch_options(),
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["from_stride", "to_stride"],
    do_not_specialize_on_alignment=["block_tables", "rows", "slots", "positions", "tables"],
)
def _gather(
    block_tables, rows, slots, positions, tables, lengths, from_stride, to_stride,
    MASK: tl.constexpr, MASK_SIZE: tl.constexpr, PER_BLOCK: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    await_inputs(PDL)
    index = tl.program_id(0)
    row = tl.load(rows + index)
    real = row >= 0
    slot = tl.where(real, tl.load(slots + index), 0).to(tl.int64)
    last = tl.where(real, tl.load(positions + tl.maximum(row, 0)), 0)
    first = first_visible(last, MASK, MASK_SIZE) // PER_BLOCK
    blocks = last // PER_BLOCK + 1
    for start in range(0, blocks, TILE):
        entry = start + tl.arange(0, TILE)
        source = block_tables + slot * from_stride + tl.maximum(entry, first)
        block = tl.load(source, mask=entry < blocks, other=0)
        tl.store(tables + index.to(tl.int64) * to_stride + entry, block, mask=entry < blocks)
    tl.store(lengths + index, last + 1)
