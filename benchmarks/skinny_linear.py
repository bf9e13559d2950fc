# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a product of a few rows costs in each configuration, beside torch's.

python benchmarks/skinny_linear.py [--rows 1 4 16] [--shapes 4096x4096 28672x4096]

Calls are replayed from a CUDA graph over copies of the weights that no L2 cache holds together.
Microseconds and TB/s of weights a call, the best of several replays.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from slipstream.kernels.skinny_linear import candidates, skinny_linear

SHAPES = ["4096x4096", "6144x4096", "4096x14336", "28672x4096", "3072x1024", "1024x3072"]
BYTES = 256 << 20
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def microseconds(product: Product, x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """Of one call."""
    for weight in weights[:2]:
        product(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            product(x, weight)
    best = math.inf
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3 / len(weights))
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name())
    arrivals = torch.zeros(4096, dtype=torch.int32, device="cuda")
    for shape in arguments.shapes:
        n, k = map(int, shape.split("x"))
        copies = math.ceil(BYTES / (2 * n * k))
        weights = list(torch.randn(copies, n, k, device="cuda", dtype=torch.bfloat16).unbind())
        for rows in arguments.rows:
            x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            products: dict[str, Product] = {"torch": F.linear}
            for config in candidates(rows, k):
                products[str(config)] = lambda x, w, c=config: skinny_linear(x, w, arrivals, c)
            times = {name: microseconds(p, x, weights) for name, p in products.items()}
            for name, time in sorted(times.items(), key=lambda item: item[1]):
                speed = 2e-6 * n * k / time
                print(f"{shape} rows {rows}: {time:7.2f} us {speed:5.2f} TB/s  {name}", flush=True)


if __name__ == "__main__":
    main()
