# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a product of a few rows costs where it stands in a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipstream.kernels.norm import add_rms_norm

_BYTES = 128 << 20  # of weights between two uses of the same: more than a cache holds
_TURNS = 8  # at least, so that starting the graph counts for little
_REPLAYS = 5
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of x and w


def milliseconds(product: Product, rows: int, weights: list[torch.Tensor]) -> float:
    """Of one call in a graph, with the weights in turn; the best of a few replays.

    Every product waits for a small kernel that makes its input, as in a model: how much of the
    weights arrives in the meantime is part of what makes a kernel fast.
    """
    needed = max(-(-_BYTES // weights[0].nbytes), _TURNS)
    turns = (weights * (needed // len(weights) + 1))[:needed]
    source = torch.randn(rows, weights[0].shape[1], device=weights[0].device).to(weights[0].dtype)

    def call(weight: torch.Tensor) -> None:
        product(add_rms_norm(source, None, None, 1e-6), weight)

    call(turns[0])  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in turns:
            call(weight)
    return fastest_replay(graph, _REPLAYS) / len(turns)


def fastest_replay(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Milliseconds of the fastest of so many."""
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)
