# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder needs of an attention implementation: plan a batch once, then run it by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from slipstream.attention.preparation import Preparation

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mask:
    """Which earlier positions a position p sees, itself included.

    ``full``: all; ``sliding``: the last ``size``; ``chunked``: those from ``p // size * size`` on.
    """

    kind: Literal["full", "sliding", "chunked"] = "full"
    size: int = 0

    def first_visible(self, positions: IntArray) -> IntArray:
        """The earliest position that each of ``positions`` sees."""
        if self.kind == "sliding":
            return np.maximum(positions - (self.size - 1), 0)
        if self.kind == "chunked":
            return positions // self.size * self.size
        return np.zeros_like(positions)


FULL = Mask()


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """How a layer's attention weights come from queries and keys.

    ``soft_cap`` c turns a scaled score s into ``c * tanh(s / c)`` before the mask.
    """

    scale: float
    mask: Mask = FULL
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Which tokens of a step belong to which sequence, and where their KV lives.

    The tokens of sequence i are ``num_tokens[i]`` consecutive rows, in the order of the
    sequences, at positions ``first_position[i]`` onwards; each attends to positions of its
    sequence up to its own. ``block_tables[g, i]`` holds the sequence's blocks in the g-th cache,
    position p in entry ``p // tokens_per_block``. Not read are entries past the last position, and
    those that lie below all that the mask of the cache's layers lets the first one see.
    """

    num_tokens: IntArray  # [seqs], each >= 1
    first_position: IntArray  # [seqs]
    block_tables: npt.NDArray[np.int32]  # [caches, seqs, width]

    @property
    def total_tokens(self) -> int:
        return int(self.num_tokens.sum())


class AttentionPlan(Protocol):
    """A planned batch. Valid until the next plan is made."""

    def run(
        self,
        layer: int,
        qkv: torch.Tensor,
        sinks: torch.Tensor | None = None,
        preparation: Preparation | None = None,
    ) -> torch.Tensor:
        """Stores this layer's keys and values, then attends.

        qkv: ``[tokens, heads + 2 * kv_heads, head_dim]``, queries, keys, values; it is overwritten.
        preparation: what is still to be done to them, None if nothing. sinks: ``[heads]``, a score
        that takes part in the softmax and has no value.
        Returns ``[tokens, heads * head_dim]``. A latent cache takes keys and no values, and the
        result is ``[tokens, heads * latent_dim]``. The KV of every sequence of the batch is
        stored before anything is read, so sequences may share blocks that the batch fills.
        """
        ...


class AttentionBackend(Protocol):
    def plan(self, batch: BatchLayout) -> AttentionPlan: ...
