# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder needs of an attention implementation: plan a batch once, then run it by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Which tokens of a step belong to which sequence, and where their KV lives.

    The tokens of sequence i are ``num_tokens[i]`` consecutive rows, in the order of the
    sequences, at positions ``first_position[i]`` onwards; each attends to all positions of its
    sequence up to its own. ``block_table[i]`` holds the sequence's blocks, position p in entry
    ``p // tokens_per_block``; entries past the last used position are not read.
    """

    num_tokens: IntArray  # [seqs], each >= 1
    first_position: IntArray  # [seqs]
    block_table: npt.NDArray[np.int32]  # [seqs, width]

    @property
    def total_tokens(self) -> int:
        return int(self.num_tokens.sum())


class AttentionPlan(Protocol):
    """A planned batch. Valid until the next plan is made."""

    def run(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Stores this layer's keys and values, then attends.

        qkv: ``[tokens, heads + 2 * kv_heads, head_dim]``, queries, keys, values, positions already
        applied. Returns ``[tokens, heads * head_dim]``. The KV of every sequence of the batch is
        stored before anything is read, so sequences may share blocks that the batch fills.
        """
        ...


class AttentionBackend(Protocol):
    def plan(self, batch: BatchLayout) -> AttentionPlan: ...
