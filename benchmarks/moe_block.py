# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a mixture-of-experts block costs, beside transformers' own block with the same weights.

.venv/bin/python benchmarks/moe_block.py [--tokens 1 1024] [--dtype bfloat16] [--device cuda]

The block is Qwen3-MoE's (64 experts of 256, 8 a token, hidden size 1024). On a CPU ours is
measured with ``deterministic``, too. All take the same tokens in turn; the best of several rounds
counts, for the machine may be doing other things.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.moe import MoeBlock, MoeSpec
from slipstream.layers.router import RouterSpec
from slipstream.layers.rows import RowKernels

HIDDEN, WIDTH, EXPERTS, TOP_K = 1024, 256, 64, 8
SECONDS = 3.0  # for each block and number of tokens


def blocks(dtype: torch.dtype, device: str) -> tuple[dict[str, torch.nn.Module], MoeBlock]:
    """transformers' block with each way it has to compute experts, and ours; equal weights."""
    torch.manual_seed(0)
    ours = MoeBlock(
        HIDDEN, MoeSpec(RouterSpec(EXPERTS, TOP_K, renormalise=True), ExpertsSpec(WIDTH)), dtype
    )
    for parameter in ours.parameters():
        parameter.requires_grad_(False).normal_(0.0, 0.03)
    theirs: dict[str, torch.nn.Module] = {}
    for way in ("eager", "batched_mm", "grouped_mm"):
        config = Qwen3MoeConfig(
            hidden_size=HIDDEN,
            moe_intermediate_size=WIDTH,
            num_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
            norm_topk_prob=True,
            experts_implementation=way,
        )
        block = Qwen3MoeSparseMoeBlock(config).to(dtype).requires_grad_(False)
        block.gate.weight.copy_(ours.router.weight)
        block.experts.gate_up_proj.copy_(ours.experts.gate_up)
        block.experts.down_proj.copy_(ours.experts.down)
        theirs[f"transformers {way}"] = block.to(device)
    return theirs, ours.to(device)


def by_rows(ours: MoeBlock, threads: int) -> MoeBlock:
    """The same block with ``deterministic``."""
    block = copy.deepcopy(ours)
    kernels = RowKernels(threads)
    for module in (block.router, block.experts):
        module.rows = kernels
    return block


def best_microseconds(
    runs: Mapping[str, Callable[[], torch.Tensor]], device: str
) -> dict[str, float]:
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    best = dict.fromkeys(runs, float("inf"))
    end = time.perf_counter() + SECONDS * len(runs)
    while time.perf_counter() < end:
        for name, run in runs.items():
            wait()
            begin = time.perf_counter()
            run()
            wait()
            best[name] = min(best[name], (time.perf_counter() - begin) * 1e6)
    return best


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 256, 1024])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    theirs, ours = blocks(getattr(torch, options.dtype), options.device)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{where}, {options.dtype}, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    for tokens in options.tokens:
        x = torch.randn(tokens, HIDDEN, device=options.device).to(ours.experts.gate_up.dtype)
        runs: dict[str, Callable[[], torch.Tensor]] = {"slipstream": partial(ours, x)}
        if options.device == "cpu":
            runs["deterministic"] = partial(by_rows(ours, options.threads), x)
        for name, block in theirs.items():
            if name.endswith("batched_mm") and tokens > 64:  # copies a matrix for every pair
                continue
            torch.testing.assert_close(block(x[None])[0], ours(x), rtol=2e-2, atol=2e-3)
            runs[name] = partial(block, x[None])
        times = best_microseconds(runs, options.device)
        row = ", ".join(f"{name} {value:.0f} us" for name, value in times.items())
        print(f"{tokens} tokens: {row}", flush=True)


if __name__ == "__main__":
    main()
