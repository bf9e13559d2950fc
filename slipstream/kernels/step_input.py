# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How a step's small arrays come to the device: read from the host's memory by a kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

_BLOCK = 4096  # words read at a time: one trip over the bus for most steps


def receive_step(
    ring: torch.Tensor,
    received: torch.Tensor,
    buffer: torch.Tensor,
    new_entries: torch.Tensor,
    new_blocks: torch.Tensor,
    block_tables: torch.Tensor,
) -> None:
    """Copies the next row of a ring to the device, and what it says of new blocks to their tables.

    ring: uint8 ``[depth, bytes]``, pinned host memory; the row is ``received % depth``. received:
    int64 ``[1]``, steps so far, counted on. buffer: uint8, the leading bytes of a row, a multiple
    of 16. new_entries, new_blocks: int32, parts of the buffer: ``new_blocks[i]`` becomes entry
    ``new_entries[i]`` of the flat block_tables (int32), unless that is negative.
    """
    words = ring.view(torch.int32)
    start = buffer.data_ptr()
    _receive[(1,)](
        words,
        received,
        buffer.view(torch.int32),
        block_tables,
        ring.shape[0],
        words.stride(0),
        buffer.numel() // 4,
        (new_entries.data_ptr() - start) // 4,
        (new_blocks.data_ptr() - start) // 4,
        new_blocks.numel(),
        BLOCK=_BLOCK,
        num_warps=8,
        **launch_options(),
    )


@triton.jit(
    do_not_specialize=["depth", "row_words", "words", "entries_at", "blocks_at", "num_blocks"]
)
def _receive(
    ring,
    received,
    buffer,
    block_tables,
    depth,
    row_words,
    words,
    entries_at,
    blocks_at,
    num_blocks,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    number = tl.load(received)
    row = ring + (number % depth) * row_words
    # The host has written the ring since this kernel last read it: past all caches.
    for start in range(0, words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        value = tl.load(row + word, word < words, cache_modifier=".cv")
        tl.store(buffer + word, value, word < words)
    for start in range(0, num_blocks, BLOCK):
        index = start + tl.arange(0, BLOCK)
        entry = tl.load(
            row + entries_at + index, index < num_blocks, other=-1, cache_modifier=".cv"
        )
        block = tl.load(row + blocks_at + index, entry >= 0, other=0, cache_modifier=".cv")
        tl.store(block_tables + entry, block, entry >= 0)
    tl.debug_barrier()  # every thread has read the number
    tl.store(received, number + 1)
