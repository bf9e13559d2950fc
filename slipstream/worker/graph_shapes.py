# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which sizes of steps have a CUDA graph, and which of them a step takes."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.worker.engine import IntArray
from slipstream.worker.frames import StepPlan
from slipstream.worker.staging import StepShape

# What exceeds a round number of tokens by a few, such as prompts and the sequences that decode
# beside them, must not be computed as the next one: a thousand tokens take as long as five steps.
_ROUND_TOKENS = (*range(2560, 4096, 512), *range(4096, 8193, 1024))
MIXED_TOKENS = (
    *(64, 96),
    *range(128, 2113, 64),
    *(tokens + more for tokens in _ROUND_TOKENS for more in (0, 64)),
)


def graph_sizes(largest: int) -> list[int]:
    """Batch sizes to capture, ascending: every one up to 64, then in steps that waste little."""
    sizes = [*range(1, 65), *range(72, 257, 8), *range(272, 513, 16), *range(544, 1025, 32)]
    return [size for size in sizes if size < largest] + [min(largest, 1024)]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Chunks cut into tiles, those that see most first: they take longest."""

    seqs: IntArray  # the sequence of each
    rows: IntArray  # its first row of the batch
    sizes: IntArray

    @classmethod
    def of(cls, plan: StepPlan, num_tokens: IntArray, starts: IntArray, size: int) -> Tiles:
        """Cuts the sequences of more than one token; ``size`` is the most of a tile."""
        counts = np.where(num_tokens > 1, -(-num_tokens // size), 0)
        seqs = np.repeat(np.arange(counts.size), counts)
        done = (np.arange(seqs.size) - np.repeat(np.cumsum(counts) - counts, counts)) * size
        sizes = np.minimum(num_tokens[seqs] - done, size)
        order = np.argsort(-(plan.first_position[seqs].astype(np.int64) + done), kind="stable")
        return cls(seqs[order], (starts[seqs] + done)[order], sizes[order])


def fitting(shapes: Sequence[StepShape], exact: StepShape) -> StepShape:
    """The first of ``shapes``, ascending by tokens, that holds a step without much more padding
    than work; else the step's own shape."""
    at = bisect.bisect_left(shapes, exact.tokens, key=lambda shape: shape.tokens)
    for shape in shapes[at:]:
        if shape.tokens > max(MIXED_TOKENS[0], 2 * exact.tokens):
            break
        if exact.fits(shape):
            return shape
    return exact
