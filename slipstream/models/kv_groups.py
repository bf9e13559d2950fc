# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which layers share a KV cache, and how a memory budget is divided among the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.attention.interface import FULL, Mask
from slipstream.models.served import ServedSpec


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that see the same positions: their KV comes and goes together."""

    mask: Mask
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Serving:
    """What the caches have to serve; lengths in tokens."""

    tokens_per_block: int
    max_seq_len: int
    max_num_seqs: int
    max_num_tokens: int

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.tokens_per_block)

    def window_blocks(self, mask: Mask) -> int:
        """The most blocks that a sequence holds between two chunks, and one to go on in."""
        return (mask.size - 1 + self.tokens_per_block - 2) // self.tokens_per_block + 2

    def least(self, masks: Sequence[Mask]) -> int:
        """Blocks in each group without which not even one sequence can run in full steps.

        Beside a full group one is enough: no sequence is longer than that.
        """
        if masks[0] == FULL:
            return 1
        step = self.max_num_tokens // self.tokens_per_block
        longest = self.blocks_for(self.max_seq_len)
        return min(longest, max(map(self.window_blocks, masks)) + step)

    def most(self, mask: Mask) -> int:
        """Blocks that suffice for all sequences at once; more only cache what they left."""
        step = self.blocks_for(self.max_num_tokens)
        return self.max_num_seqs * self.window_blocks(mask) + step

    def at_once(self, mask: Mask, blocks: int) -> int:
        """Sequences of the greatest length that a pool of so many blocks holds."""
        if mask.kind == "full":
            return blocks * self.tokens_per_block // self.max_seq_len
        whole = blocks // self.blocks_for(self.max_seq_len)
        step = self.max_num_tokens // self.tokens_per_block
        return max(whole, (blocks - step) // self.window_blocks(mask), 0)


def kv_groups(spec: ServedSpec, max_seq_len: int) -> tuple[KvGroup, ...]:
    """The groups of a decoder, the full one first. A window that no sequence outgrows is full."""
    layers: dict[Mask, list[int]] = {}
    for index, scores in enumerate(spec.scores):
        mask = scores.mask
        if mask.kind != "full" and mask.size >= max_seq_len:
            mask = FULL
        layers.setdefault(mask, []).append(index)
    masks = sorted(layers, key=lambda mask: mask != FULL)
    return tuple(KvGroup(mask, tuple(layers[mask])) for mask in masks)


def pools_for_tokens(masks: Sequence[Mask], serving: Serving, tokens: int) -> list[int]:
    """Blocks of every group when the full one is to hold so many tokens.

    Windowed groups get what they can use, but no more than the full one. Where there is none, they
    hold that many tokens if it is enough for a sequence.
    """
    blocks = serving.blocks_for(tokens)
    if masks[0] == FULL:
        return [blocks, *(min(blocks, serving.most(mask)) for mask in masks[1:])]
    return [max(blocks, serving.least(masks))] * len(masks)


def pools_for_bytes(
    masks: Sequence[Mask], bytes_per_block: Sequence[int], serving: Serving, budget: int
) -> list[int]:
    """Blocks of every group within a budget in bytes.

    The full group gets what the windowed ones leave; where there is none, all groups hold equally
    many tokens. May be too few to serve anything: see ``Serving.least``.
    """
    if masks[0] != FULL:
        return [budget // sum(bytes_per_block)] * len(masks)
    most = [serving.most(mask) for mask in masks[1:]]
    sizes = bytes_per_block[1:]
    enough: list[int] = []  # windowed groups that have all that they can use
    while True:
        left = budget - sum(most[i] * sizes[i] for i in enough)
        others = sum(size for i, size in enumerate(sizes) if i not in enough)
        blocks = left // (bytes_per_block[0] + others)
        now_enough = [i for i, count in enumerate(most) if count < blocks]
        if now_enough == enough:
            return [blocks, *(min(count, blocks) for count in most)]
        enough = now_enough


def smallest_pools(
    masks: Sequence[Mask],
    bytes_per_block: Sequence[int],
    serving: Serving,
    tokens: int,
    budgets: Sequence[tuple[int, str]],
) -> tuple[list[int], int, str]:
    """Of the sizes that are given the smallest: its pools, its bytes and the setting's name.

    tokens: ``kv_cache_tokens``, 0 if that is not given; budgets: bytes, and what gives them.
    """
    choices = [
        (pools_for_bytes(masks, bytes_per_block, serving, budget), budget, name)
        for budget, name in budgets
    ]
    if tokens:
        pools = pools_for_tokens(masks, serving, tokens)
        size = sum(count * each for count, each in zip(pools, bytes_per_block, strict=True))
        choices.insert(0, (pools, size, "kv_cache_tokens"))
    # They differ by one number, that of the first group's blocks.
    return min(choices, key=lambda choice: choice[0])
