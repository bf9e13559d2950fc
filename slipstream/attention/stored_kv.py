# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""One layer's keys and values, as rows of its pool that torch can write and gather."""

from __future__ import annotations

import torch

from slipstream.attention.kv_cache import bits_of
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
