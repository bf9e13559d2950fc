# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How fast the attention kernels read a paged cache, on a GPU.

python3 benchmarks/attention_kernels.py [--heads 32] [--kv-heads 8] [--head-dim 128]
    [--tokens-per-block 16] [--decode 1x1k 64x4k] [--prefill 8x1024] [--programs 64 396]
    [--sliding 4096] [--soft-cap 50] [--kv-cache-dtype fp8] [--backends triton flashinfer]
    [--kernels stream tiles]

Every launch is compared with float32 arithmetic first. Times are of replays of CUDA graphs whose
launches take turns on caches that together exceed the GPU's second-level cache, the best of several
replays. TB/s counts the keys and values that the mask shows; TFLOP/s half a square of scores. FP8
caches have scales other than 1. FlashInfer needs blocks of 16, 32, 64 or 128 tokens; what its plan
costs the host is printed beside its prefill. --kernels: of ours, ``stream``, which is
chosen where the GPU has it, and ``tiles``, whose --programs may be given.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from slipstream.attention.kv_cache import bits_of
from slipstream.attention.kv_scale import UNSCALED, KvScale, to_fp8
from slipstream.kernels.decode_schedule import decode_schedule, schedule_decodes
from slipstream.kernels.flashinfer_calls import Chunks, Fa3Prefill, XqaDecode
from slipstream.kernels.page_tables import gather_tables
from slipstream.kernels.paged_decode import (
    decode_attention,
    decode_programs,
    decode_tile,
    decode_workspace,
    streams_decode,
)
from slipstream.kernels.paged_prefill import (
    prefill_attention,
    streams_prefill,
    tile_tokens,
)
from slipstream.kernels.timing import fastest_replay

DECODE = ["1x1k", "1x16k", "1x64k", "1x128k", "8x4k", "64x1k", "64x4k", "256x1k", "256x2k"]
PREFILL = ["1x8192", "8x1024", "16x1024"]
COLD_BYTES = 512 << 20  # of KV between two uses of the same
REPLAYS = 10


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    per_block: int
    window: int  # 0: no window
    soft_cap: float | None
    fp8: bool

    @property
    def scale(self) -> KvScale:
        """Of random normal numbers: they use most of the range of e4m3."""
        return KvScale(0.02, 0.03) if self.fp8 else UNSCALED

    @property
    def value_bytes(self) -> int:
        return 1 if self.fp8 else 2

    @property
    def options(self) -> dict:
        return {
            "scale": self.head_dim**-0.5,
            "mask_kind": "sliding" if self.window else "full",
            "mask_size": self.window,
            "soft_cap": self.soft_cap,
            "sinks": None,
            "key_scale": self.scale.key,
            "value_scale": self.scale.value,
        }

    def first_visible(self, position: int) -> int:
        return max(position - self.window + 1, 0) if self.window else 0


class Caches:
    """As many pools as make every launch find its KV in memory; blocks are shuffled."""

    def __init__(self, shape: Shape, n: int, length: int) -> None:
        self.shape, self.n, self.length = shape, n, length
        width = -(-length // shape.per_block)
        size = (n * width, 2, shape.kv_heads, shape.per_block, shape.head_dim)
        count = max(1, min(64, -(-COLD_BYTES // (math.prod(size) * shape.value_bytes))))
        self.pools = [self._pool(size) for _ in range(count)]
        self.tables = torch.randperm(n * width, device="cuda").int().view(n, width)

    def _pool(self, size: tuple[int, ...]) -> torch.Tensor:
        pool = torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_()
        return to_fp8(pool, self._scales()) if self.shape.fp8 else pool

    def _scales(self) -> torch.Tensor:
        """``[2, 1, 1, 1]``, of the planes of a pool."""
        scale = self.shape.scale
        return torch.tensor([scale.key, scale.value], device="cuda")[:, None, None, None]

    def reference(self, q: torch.Tensor, sequence: int, position: int) -> torch.Tensor:
        """What a token gets from the first pool: ``[heads * head_dim]``. q: ``[heads, dim]``."""
        shape = self.shape
        blocks = bits_of(self.pools[0])[self.tables[sequence].long()]
        blocks = blocks.view(self.pools[0].dtype).float() * self._scales()
        kv = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)  # [2, kv_heads, positions, dim]
        kv = kv[:, :, shape.first_visible(position) : position + 1]
        queries = q.float().view(shape.kv_heads, -1, shape.head_dim)
        scores = queries @ kv[0].transpose(1, 2) * shape.head_dim**-0.5
        if shape.soft_cap is not None:
            scores = (scores / shape.soft_cap).tanh() * shape.soft_cap
        return (scores.softmax(-1) @ kv[1]).flatten()


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def qkv(shape: Shape, tokens: int) -> torch.Tensor:
    heads = shape.heads + 2 * shape.kv_heads
    rows = torch.randn(tokens, heads, shape.head_dim, device="cuda", dtype=torch.bfloat16)
    return rows[:, : shape.heads]


def microseconds(launch: Callable[[torch.Tensor], None], pools: list[torch.Tensor]) -> float:
    """Of one launch, in a graph with a launch or more for each pool."""
    launches = pools * max(1, 20 // len(pools))
    launch(pools[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for pool in launches:
            launch(pool)
    return fastest_replay(graph, REPLAYS) * 1e3 / len(launches)


def compare(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """By the length of the difference: a long context's averages are small, each of them."""
    error = float((actual.float() - expected).norm() / expected.norm())
    if not error < 1e-2:
        raise SystemExit(f"{what}: wrong by {error:.1%}")


class Decodes:
    """The last token of each of ``n`` sequences."""

    def __init__(self, shape: Shape, name: str) -> None:
        self.shape, self.name = shape, name
        self.n, self.length = parse(name)
        self.caches = Caches(shape, self.n, self.length)
        self.q = qkv(shape, self.n)
        self.out = torch.empty(self.n, shape.heads * shape.head_dim, device="cuda").bfloat16()
        self.rows, self.positions = ints(list(range(self.n))), ints([self.length - 1] * self.n)

    def measure(self, launch: Callable[[torch.Tensor], None], how: str, mark: str = "") -> None:
        shape, n, last = self.shape, self.n, self.length - 1
        self.out.fill_(float("nan"))
        launch(self.caches.pools[0])
        for i in sorted({0, n // 2, n - 1}):
            expected = self.caches.reference(self.q[i], i, last)
            compare(self.out[i], expected, f"decode {self.name} {how}, row {i}")
        time = microseconds(launch, self.caches.pools)
        seen = n * (self.length - shape.first_visible(last))
        rate = seen * shape.kv_heads * shape.head_dim * 2 * shape.value_bytes / time / 1e6
        print(f"decode {self.name:8} {how:13} {time:9.1f} us {rate:6.2f} TB/s{mark}", flush=True)

    def triton(self, kernels: list[str], programs: list[int]) -> None:
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        streams = streams_decode(self.shape.heads, self.caches.pools[0])
        if "stream" in kernels and streams:
            self._triton(decode_programs(sms, True), sms, True, "stream", " chosen")
        if "tiles" in kernels or not streams:
            usual = decode_programs(sms, False)
            for count in dict.fromkeys([*programs, usual]):
                mark = " chosen" if count == usual and not streams else ""
                self._triton(count, sms, False, f"programs {count}", mark)

    def _triton(self, count: int, sms: int, streamed: bool, how: str, mark: str) -> None:
        """The schedule is made once a step, and not timed."""
        shape, rows = self.shape, self.rows
        schedule = decode_schedule(
            self.n, shape.kv_heads, count, sms, self.q.device, streamed=streamed
        )
        workspace = decode_workspace(schedule, shape.heads, shape.head_dim)
        schedule_decodes(
            rows,
            rows,
            self.positions,
            schedule,
            tile=decode_tile(shape.head_dim, streamed),
            mask_kind=shape.options["mask_kind"],
            mask_size=shape.options["mask_size"],
        )
        torch.cuda.synchronize()

        def launch(pool: torch.Tensor) -> None:
            decode_attention(
                self.q, pool, self.caches.tables, self.out, workspace, schedule, n=self.n,
                **shape.options,
            )  # fmt: skip

        self.measure(launch, how, mark)

    def flashinfer(self) -> None:
        """The queries it reads have to be contiguous; tables are gathered once a step."""
        shape, q = self.shape, self.q.contiguous()
        xqa = XqaDecode(self.n, shape.kv_heads, q.device)
        tables, lengths = torch.empty_like(self.caches.tables), torch.empty_like(self.rows)
        gather_tables(
            self.caches.tables, self.rows, self.rows, self.positions, tables, lengths,
            per_block=shape.per_block, mask_kind="full", mask_size=0,
        )  # fmt: skip

        def launch(pool: torch.Tensor) -> None:
            out, scale = self.out.view(q.shape), shape.options["scale"]
            xqa.run(q, pool, tables, lengths, out, scale=scale, window=shape.window)

        self.measure(launch, "flashinfer")


class Prompts:
    """``n`` sequences from their first token on."""

    def __init__(self, shape: Shape, name: str) -> None:
        self.shape, self.name = shape, name
        self.n, self.length = parse(name)
        self.caches = Caches(shape, self.n, self.length)
        self.q = qkv(shape, self.n * self.length)
        width = shape.heads * shape.head_dim
        self.out = torch.empty(self.n * self.length, width, device="cuda", dtype=torch.bfloat16)

    def measure(self, launch: Callable[[torch.Tensor], None], how: str, mark: str = "") -> None:
        shape, n, length = self.shape, self.n, self.length
        self.out.fill_(float("nan"))
        launch(self.caches.pools[0])
        for sequence, position in ((0, 0), (n - 1, length // 2 + 3), (n - 1, length - 1)):
            row = sequence * length + position
            expected = self.caches.reference(self.q[row], sequence, position)
            compare(self.out[row], expected, f"prefill {self.name} {how}, token {row}")
        assert not self.out.isnan().any()
        time = microseconds(launch, self.caches.pools)
        seen = sum(position + 1 - shape.first_visible(position) for position in range(length))
        rate = 4 * n * seen * shape.heads * shape.head_dim / time / 1e6
        print(
            f"prefill {self.name:8} {how:13} {time:9.1f} us {rate:6.0f} TFLOP/s{mark}", flush=True
        )

    def triton(self, kernels: list[str]) -> None:
        shape, length = self.shape, self.length
        most = tile_tokens(shape.heads, shape.kv_heads)
        tiles = [
            (i * length + begin, min(most, length - begin), i)
            for begin in reversed(range(0, length, most))  # the longest first
            for i in range(self.n)
        ]
        rows, sizes, slots = (ints(list(column)) for column in zip(*tiles, strict=True))
        positions = ints(list(range(length)) * self.n)

        streams = streams_prefill(self.q, self.caches.pools[0])
        for how in ("stream", "tiles"):
            if how not in kernels or (how == "stream" and not streams):
                continue

            def launch(pool: torch.Tensor, streamed: bool = how == "stream") -> None:
                prefill_attention(
                    self.q, pool, self.caches.tables, rows, sizes, slots, positions, self.out,
                    streamed=streamed, **shape.options,
                )  # fmt: skip

            self.measure(launch, how)

    def flashinfer(self) -> None:
        shape, n, tables = self.shape, self.n, self.caches.tables
        prefill = Fa3Prefill(
            shape.heads, shape.kv_heads, shape.head_dim,
            max_rows=n * self.length, max_chunks=n, depth=2, device=self.q.device,
        )  # fmt: skip
        sizes, slots = np.full(n, self.length), np.arange(n)
        chunks = Chunks(slots * self.length, sizes, slots, sizes)
        spent = []
        for turn in (0, 1) * 5:
            begin = time.perf_counter()
            prefill.plan(chunks, n * self.length, n, tables.shape[1], shape.per_block, turn)
            spent.append(time.perf_counter() - begin)
            torch.cuda.synchronize()

        def launch(pool: torch.Tensor) -> None:
            out = self.out.view(self.q.shape)
            prefill.run(self.q, pool, tables, out, scale=shape.options["scale"])

        self.measure(launch, "flashinfer", f", plan {sorted(spent)[5] * 1e6:.0f} us of the host")


def parse(name: str) -> tuple[int, int]:
    """Sequences and positions: ``8x4k`` is (8, 4096)."""
    n, length = name.split("x")
    return int(n), int(length[:-1]) * 1024 if length.endswith("k") else int(length)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens-per-block", type=int, default=16)
    parser.add_argument("--sliding", type=int, default=0)
    parser.add_argument("--soft-cap", type=float)
    parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], default="auto")
    parser.add_argument("--decode", nargs="*", default=DECODE)
    parser.add_argument("--prefill", nargs="*", default=PREFILL)
    parser.add_argument("--programs", type=int, nargs="*", default=[])
    parser.add_argument(
        "--backends", nargs="+", choices=["triton", "flashinfer"], default=["triton"]
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=["stream", "tiles"], default=["stream", "tiles"]
    )
    options = parser.parse_args()
    if "flashinfer" in options.backends:
        if options.soft_cap is not None or options.kv_cache_dtype == "fp8":
            parser.error("--backends flashinfer has no soft caps and no FP8 caches here")
        if options.sliding and options.prefill:
            parser.error("--backends flashinfer has no windows in prefill: give --prefill alone")
    shape = Shape(
        options.heads,
        options.kv_heads,
        options.head_dim,
        options.tokens_per_block,
        options.sliding,
        options.soft_cap,
        options.kv_cache_dtype == "fp8",
    )
    print(f"{torch.cuda.get_device_name()}, bfloat16, {shape}")
    for name in options.decode:
        decodes = Decodes(shape, name)
        if "triton" in options.backends:
            decodes.triton(options.kernels, options.programs)
        if "flashinfer" in options.backends:
            decodes.flashinfer()
        del decodes
    for name in options.prefill:
        prompts = Prompts(shape, name)
        if "triton" in options.backends:
            prompts.triton(options.kernels)
        if "flashinfer" in options.backends:
            prompts.flashinfer()
        del prompts


if __name__ == "__main__":
    main()
