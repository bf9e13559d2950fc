# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What comes before and after a model in a step: tokens of slots, and where KV is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from slipstream.kernels.overlap import await_inputs, launch_options

_BLOCK = 256


def expand_tokens(
    token_ids: torch.Tensor,
    token_slots: torch.Tensor,
    positions: torch.Tensor,
    last_tokens: torch.Tensor,
    block_tables: torch.Tensor,
    tokens_per_block: int,
    write_slots: torch.Tensor,
) -> None:
    """Replaces negative ``token_ids`` by their slot's last token and finds where KV goes.

    token_ids, token_slots, positions: int32 ``[tokens]``; last_tokens: int64 ``[slots + 1]``;
    block_tables: int32 ``[groups, slots + 1, blocks]``; write_slots: int64 ``[groups, tokens]``,
    block * tokens_per_block + offset, or -1 where the slot is the last one, which is padding.
    """
    tokens = token_ids.shape[0]
    groups, rows, blocks = block_tables.shape
    _expand[(triton.cdiv(tokens, _BLOCK), groups)](
        token_ids,
        token_slots,
        positions,
        last_tokens,
        block_tables,
        write_slots,
        tokens,
        rows,
        blocks,
        tokens_per_block,
        BLOCK=_BLOCK,
        **launch_options(),
    )


def keep_tokens(
    sampled: torch.Tensor,
    slots: torch.Tensor,
    last_tokens: torch.Tensor,
    vocab_size: int,
    received: torch.Tensor,
    arrived: torch.Tensor,
) -> None:
    """Makes what was sampled the last tokens of their slots, and writes it to the host's memory.

    sampled: int32 ``[2, rows]``, tokens and whether each comes of finite logits. arrived: int32
    ``[depth, 2, most rows]``, pinned host memory, of which row ``(received - 1) % depth`` takes
    both as they are; see ``receive_step``. A token of a broken row may be anything; in last_tokens
    it is kept within the vocabulary, since the next step looks it up before the host can end the
    sequence.
    """
    rows = sampled.shape[1]
    _keep[(triton.cdiv(rows, _BLOCK),)](
        sampled,
        slots,
        last_tokens,
        received,
        arrived,
        rows,
        sampled.stride(0),
        arrived.shape[0],
        arrived.shape[2],
        vocab_size,
        BLOCK=_BLOCK,
        **launch_options(),
    )


@triton.jit(do_not_specialize=["tokens", "rows", "blocks"])
def _expand(
    token_ids,
    token_slots,
    positions,
    last_tokens,
    block_tables,
    write_slots,
    tokens,
    rows,
    blocks,
    tokens_per_block: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    here = token < tokens
    slot = tl.load(token_slots + token, here, other=0)
    position = tl.load(positions + token, here, other=0)
    if group == 0:
        known = tl.load(token_ids + token, here, other=0)
        last = tl.load(last_tokens + slot, here & (known < 0), other=0)
        tl.store(token_ids + token, last, here & (known < 0))
    entry = (group.to(tl.int64) * rows + slot) * blocks + position // tokens_per_block
    used = here & (slot < rows - 1)
    block = tl.load(block_tables + entry, used, other=0).to(tl.int64)
    place = tl.where(used, block * tokens_per_block + position % tokens_per_block, -1)
    tl.store(write_slots + group.to(tl.int64) * tokens + token, place, here)


@triton.jit(do_not_specialize=["rows", "stride", "depth", "most_rows", "vocab_size"])
def _keep(
    sampled,
    slots,
    last_tokens,
    received,
    arrived,
    rows,
    stride,
    depth,
    most_rows,
    vocab_size,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = row < rows
    token = tl.load(sampled + row, here, other=0)
    finite = tl.load(sampled + stride + row, here, other=0)
    place = arrived + (tl.load(received) - 1) % depth * 2 * most_rows
    tl.store(place + row, token, here)
    tl.store(place + most_rows + row, finite, here)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
    tl.store(last_tokens + tl.load(slots + row, here, other=0), token, here)
