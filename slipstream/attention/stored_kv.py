# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""One layer's keys and values, as rows of its pool that torch can write and gather."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from slipstream.attention.interface import BatchLayout, IntArray
from slipstream.attention.kv_cache import KvShape, bits_of
from slipstream.attention.kv_scale import FP8, KvScale, to_fp8


class StoredKv:
    """pool: ``[blocks, planes, kv_heads, tokens_per_block, head_dim]``. dtype: of what is written
    and read. scale: given for FP8 pools, and for no others."""

    def __init__(self, pool: torch.Tensor, dtype: torch.dtype, scale: KvScale | None) -> None:
        _, planes, kv_heads, per_block, head_dim = pool.shape
        assert (pool.dtype == FP8) == (scale is not None)
        assert scale is not None or pool.dtype == dtype
        self._dtype = dtype
        self._positions = bits_of(pool).view(-1, head_dim)
        self._blocks = bits_of(pool).view(-1, per_block * head_dim)
        self._divisor = None
        if scale is not None:
            assert planes == 2, "FP8 caches hold keys and values apart"
            both = torch.tensor([scale.key, scale.value], device=pool.device)
            self._divisor = both.repeat_interleave(kv_heads)[:, None]

    def write(self, rows: torch.Tensor, kv: torch.Tensor) -> None:
        """kv: ``[tokens, planes * kv_heads, head_dim]``, the rows of positions of each."""
        if self._divisor is not None:
            kv = bits_of(to_fp8(kv, self._divisor))
        self._positions[rows] = kv

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """``[rows, tokens_per_block * head_dim]``, each the part of a block that is one head's and
        one plane's; FP8 is widened and not yet multiplied by its scale."""
        blocks = self._blocks.index_select(0, rows)
        return blocks if self._divisor is None else blocks.view(FP8).to(self._dtype)


def write_rows(shape: KvShape, batch: BatchLayout, block_table: npt.NDArray[np.int32]) -> IntArray:
    """Where each token's keys and values go: ``[tokens, planes * kv_heads]`` of StoredKv.

    block_table: of the cache, ``[seqs, width]``.
    """
    sequence = np.repeat(np.arange(batch.num_tokens.size), batch.num_tokens)
    starts = np.cumsum(batch.num_tokens) - batch.num_tokens
    positions = (batch.first_position - starts)[sequence] + np.arange(sequence.size)
    blocks = block_table[sequence, positions // shape.tokens_per_block].astype(np.int64)
    stored = shape.planes * shape.num_kv_heads
    heads = blocks[:, None] * stored + np.arange(stored)
    rows: IntArray = heads * shape.tokens_per_block
    rows += (positions % shape.tokens_per_block)[:, None]
    return rows
