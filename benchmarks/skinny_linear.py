# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a product of a few rows costs in each configuration, beside torch's.

python benchmarks/skinny_linear.py [--rows 8 16] [--shapes 4096x4096 28672x4096-silu]

Microseconds as the worker measures them at start: each call behind a small kernel that makes its
input, which is part of the time; and TB/s of weights. Every result is checked before. Kernels are
compiled ahead by as many processes as there are cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from slipstream.kernels.activation import gated_activation
from slipstream.kernels.skinny_linear import SkinnyConfig, candidates, skinny_linear
from slipstream.kernels.timing import Product, milliseconds

SHAPES = [
    *("6144x4096", "4096x4096", "28672x4096-silu", "4096x14336"),  # Llama-3.1-8B
    *("4096x1024", "1024x2048", "6144x1024-silu", "1024x3072"),  # Qwen3-0.6B
]
BYTES = 128 << 20  # of different weights
DTYPE = torch.bfloat16


def parse(shape: str) -> tuple[int, int, str | None]:
    sizes, _, activation = shape.partition("-")
    n, k = map(int, sizes.split("x"))
    return n, k, activation or None


# Compiling ahead


class Driver:
    """What Triton asks of a GPU before it launches anything."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * self._capability[0] + self._capability[1], 32)


def compile_instead_of_launching(capability: tuple[int, int], processors: int) -> None:
    from triton.runtime import driver, jit

    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: capability
    torch.cuda.get_device_properties = lambda d: SimpleNamespace(multi_processor_count=processors)
    driver.set_active(Driver(capability))
    run = jit.JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool = False, **options: Any) -> Any:
        return run(self, *arguments, warmup=True, **options)

    jit.JITFunction.run = compile_only


def compile_one(job: tuple[str, int, SkinnyConfig]) -> None:
    """Leaves a kernel in Triton's cache."""
    shape, rows, config = job
    n, k, activation = parse(shape)
    x, w = torch.empty(rows, k, dtype=DTYPE), torch.empty(n, k, dtype=DTYPE)
    skinny_linear(x, w, torch.empty(n, dtype=torch.int32), config, activation=activation)


def compile_ahead(shapes: list[str], row_counts: list[int]) -> None:
    jobs = []
    for shape in shapes:
        n, k, activation = parse(shape)
        w = torch.empty(n, k, dtype=DTYPE, device="cuda")
        jobs += [(shape, r, config) for r in row_counts for config in candidates(r, w, activation)]
    properties = torch.cuda.get_device_properties(0)
    device = ((properties.major, properties.minor), properties.multi_processor_count)
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    start = time.monotonic()
    with context.Pool(cores, compile_instead_of_launching, device) as pool:
        pool.map(compile_one, jobs, chunksize=1)
    taken = time.monotonic() - start
    print(f"{len(jobs)} kernels compiled on {cores} cores in {taken:.0f} s", flush=True)


# On the GPU


def check(
    config: SkinnyConfig, rows: int, w: torch.Tensor, activation: str | None, arrivals: torch.Tensor
) -> str:
    """What is wrong with the results of a kernel."""
    x = torch.randn(rows, w.shape[1], device="cuda", dtype=DTYPE)
    expected = x.float() @ w.float().T
    if activation:
        gate, up = expected.chunk(2, 1)
        expected = F.silu(gate) * up
    outs = [torch.full_like(expected, torch.nan, dtype=DTYPE) for _ in range(10)]
    for out in outs:
        skinny_linear(x, w, arrivals, config, out, activation=activation)
    error = float((outs[0].float() - expected).norm() / expected.norm())
    if not error < 1e-2:
        return f"WRONG: relative error {error:.1e}"
    if not all(torch.equal(out, outs[0]) for out in outs):
        return "WRONG: does not repeat"
    return "WRONG: arrivals are left" if arrivals.any() else ""


def short(config: SkinnyConfig) -> str:
    cut = f"{config.block_n}x{config.block_k}/{config.splits}"
    return f"{config.kernel} {cut} warps {config.warps} stages {config.stages}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), flush=True)
    compile_ahead(arguments.shapes, arguments.rows)
    for shape in arguments.shapes:
        n, k, activation = parse(shape)
        copies = -(-BYTES // (2 * n * k))
        weights = [torch.randn(n, k, device="cuda", dtype=DTYPE) * k**-0.5 for _ in range(copies)]
        arrivals = torch.zeros(n, dtype=torch.int32, device="cuda")

        def by_torch(
            x: torch.Tensor, w: torch.Tensor, activation: str | None = activation
        ) -> torch.Tensor:
            product = F.linear(x, w)
            return gated_activation(product, activation) if activation else product

        for rows in arguments.rows:
            products: dict[str, Product] = {"torch": by_torch}
            for config in candidates(rows, weights[0], activation):
                if wrong := check(config, rows, weights[0], activation, arrivals):
                    print(f"{shape} rows {rows}: {short(config)} {wrong}", flush=True)
                    arrivals.zero_()
                    continue
                products[short(config)] = lambda x, w, c=config, a=activation, z=arrivals: (
                    skinny_linear(x, w, z, c, activation=a)
                )
            times = {name: milliseconds(p, rows, weights) for name, p in products.items()}
            for name, taken in sorted(times.items(), key=lambda item: item[1]):
                speed = 2e-9 * n * k / taken
                line = f"{shape} rows {rows}: {1e3 * taken:7.2f} us {speed:5.2f} TB/s  {name}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
