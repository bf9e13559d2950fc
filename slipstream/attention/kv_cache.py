# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tensors that hold keys and values, cut into blocks."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slipstream.attention.kv_scale import FP8


@dataclass(frozen=True, slots=True)
class KvShape:
    """Sizes of a paged cache; ``tokens_per_block`` positions in every block.

    ``latent_dim``: the cache holds keys alone, whose leading ``latent_dim`` entries are the values
    too (multi-head latent attention). None: keys and values, both of ``head_dim``.
    """

    num_layers: int
    num_kv_heads: int
    tokens_per_block: int
    head_dim: int
    dtype: torch.dtype  # of what is stored: the model's, or FP8
    latent_dim: int | None = None

    @property
    def planes(self) -> int:
        """What is stored of a token and head: a key, or a key and a value."""
        return 1 if self.latent_dim is not None else 2

    @property
    def value_dim(self) -> int:
        return self.head_dim if self.latent_dim is None else self.latent_dim

    @property
    def bytes_per_block(self) -> int:
        """All that is stored of one block over all layers."""
        heads = self.num_layers * self.planes * self.num_kv_heads
        return heads * self.tokens_per_block * self.head_dim * self.dtype.itemsize


class KvCache:
    """``pool``: ``[layers, blocks, planes, kv_heads, tokens_per_block, head_dim]``, keys before
    values.

    Heads come before positions: a block's keys of one head are contiguous, so that gathering a
    sequence's blocks gives ``[kv_heads, positions, head_dim]`` without a transposition.
    """

    def __init__(self, shape: KvShape, num_blocks: int, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.pool = _zeros(
            (
                shape.num_layers,
                num_blocks,
                shape.planes,
                shape.num_kv_heads,
                shape.tokens_per_block,
                shape.head_dim,
            ),
            shape.dtype,
            device,
        )
        self._bits = bits_of(self.pool)

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copies the leading positions of a block; the rest of the target becomes zero."""
        pool = self._bits
        pool[:, target, :, :, :num_tokens] = pool[:, source, :, :, :num_tokens]
        if num_tokens < self.shape.tokens_per_block:
            pool[:, target, :, :, num_tokens:] = 0

    def clear(self, blocks: torch.Tensor) -> None:
        """Zeroes whole blocks.

        A padded attention multiplies what it masks by zero, and zero times a stale NaN is NaN: a
        block that the step does not fill must be cleared before its first position is written.
        """
        self._bits.index_fill_(1, blocks, 0)


def bits_of(pool: torch.Tensor) -> torch.Tensor:
    """The same memory in a type that can be indexed and filled: torch only converts FP8."""
    return pool.view(torch.uint8) if pool.dtype == FP8 else pool


def pools_by_layer(
    caches: Sequence[KvCache], layers: Sequence[Sequence[int]]
) -> list[tuple[int, torch.Tensor]]:
    """For each layer of a model the cache that holds it, by index, and its own part of the pool.

    ``layers[g]`` are the model's layers that the g-th cache holds, in its order.
    """
    places = {
        layer: (group, pool)
        for group, cache in enumerate(caches)
        for layer, pool in zip(layers[group], cache.pool, strict=True)
    }
    return [places[layer] for layer in range(len(places))]


def _zeros(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(sizes, dtype=dtype, device=device)
    # Pages of an anonymous map are zero and take memory only once they are used, so a large pool
    # costs neither start-up time nor memory that nobody needs.
    pages = mmap.mmap(-1, max(math.prod(sizes) * dtype.itemsize, 1))
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(sizes)).view(sizes)
