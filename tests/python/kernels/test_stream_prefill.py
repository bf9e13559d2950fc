# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Streamed attention of prompts: where, and, on the GPUs for it, how right."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from test_paged_attention import Case, Chunk, Layout, assert_close, case, ints, prefill

from slipstream.attention.interface import Mask
from slipstream.attention.kv_scale import FP8
from slipstream.kernels import paged_prefill
from slipstream.kernels.paged_common import MaskKind
from slipstream.kernels.paged_prefill import prefill_attention, streams_prefill, tile_tokens

hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device seems to run streamed kernels."""
    monkeypatch.setattr(paged_prefill, "streams", lambda device: True)


def arguments(
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 128,
    per_block: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    pool_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and a pool."""
    q = torch.empty(3, heads + 2 * kv_heads, head_dim, dtype=dtype)[:, :heads]
    return q, torch.empty(5, 2, kv_heads, per_block, head_dim, dtype=pool_dtype or dtype)


@pytest.mark.usefixtures("able")
def test_what_is_streamed() -> None:
    assert streams_prefill(*arguments())
    assert streams_prefill(*arguments(head_dim=64, dtype=torch.float16))
    assert streams_prefill(*arguments(heads=256, per_block=8))


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 96},
        {"head_dim": 256},
        {"per_block": 4},
        {"heads": 258},
        {"dtype": torch.float32},
        {"pool_dtype": FP8},
    ],
    ids=str,
)
def test_what_is_not(changes: dict) -> None:
    assert not streams_prefill(*arguments(**changes))


@pytest.mark.usefixtures("able")
def test_queries_must_be_aligned() -> None:
    _, pool = arguments()
    assert not streams_prefill(
        torch.empty(4 * 1536 + 1, dtype=torch.bfloat16)[1:].view(4, 12, 128), pool
    )
    assert not streams_prefill(torch.empty(4, 12, 136, dtype=torch.bfloat16)[:, :, :128], pool)


def test_a_cpu_does_not_stream() -> None:
    assert not streams_prefill(*arguments())


BF16 = {"dtype": torch.bfloat16, "head_dim": 128}
CASES = [
    case("heads-of-128", **BF16),
    case("heads-of-64", dtype=torch.float16),
    *(case(f"blocks-of-{n}", **BF16, per_block=n) for n in (8, 32, 64, 128, 256)),
    case("blocks-of-128-heads-of-64", dtype=torch.bfloat16, per_block=128),
    case("group-of-1", **BF16, heads=2),
    case("group-of-4", **BF16, heads=8, per_block=32),
    case("group-of-7", **BF16, heads=14, per_block=64),
    case("group-of-8", **BF16, heads=8, kv_heads=1),
    case("group-of-71", dtype=torch.bfloat16, heads=71, kv_heads=1),
    case("fp16", dtype=torch.float16, head_dim=128, heads=8, per_block=32),
    case("sliding", **BF16, mask=Mask("sliding", 70), heads=8, per_block=32),
    case("sliding-far", **BF16, mask=Mask("sliding", 300), heads=8, per_block=64),
    case("window-of-1", **BF16, mask=Mask("sliding", 1), per_block=32),
    case("chunked", **BF16, mask=Mask("chunked", 96), heads=14, per_block=64),
    case("chunked-odd", **BF16, mask=Mask("chunked", 50), heads=8),
    case("soft-cap", **BF16, soft_cap=3.0, per_block=32),
    case("sinks", **BF16, sinks=True, heads=14),
    case("sinks-sliding", dtype=torch.float16, sinks=True, mask=Mask("sliding", 70), heads=8),
    case("all", **BF16, sinks=True, mask=Mask("chunked", 150), soft_cap=2.0, heads=8),
]


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 0, 1)],
        [(0, 0, 128)],
        [(0, 0, 129), (1, 127, 2), (2, 128, 3)],
        [(0, 0, 40), (1, 110, 27), (2, 1000, 333)],  # odd, with a long past
        [(0, 0, 700), (1, 511, 514)],
    ],
    ids=str,
)
def test_streamed_prefill(case: Case, chunks: list[Chunk]) -> None:
    layout = Layout(case, [first + tokens for _, first, tokens in chunks])
    for sequence, first, _ in chunks:
        layout.hide(sequence, int(case.mask.first_visible(np.array([first]))[0]))
    assert streams_prefill(layout.queries(1), layout.pool)
    prefill(layout, chunks)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("processors", [1, 2, 5])
def test_streamed_prefill_of_many_tiles_a_program(
    monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    properties = SimpleNamespace(multi_processor_count=processors, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    layout = Layout(replace(Case(), **BF16, heads=8, per_block=32), [300, 500, 77])
    prefill(layout, [(0, 0, 300), (1, 200, 300), (2, 76, 1)], times=20)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("padded", [False, True], ids=["all", "padded"])
@pytest.mark.parametrize(
    ("heads", "head_dim", "per_block", "kind", "size"),
    [
        (32, 128, 64, "full", 0),
        (32, 128, 16, "sliding", 300),
        (32, 128, 32, "chunked", 300),
        (64, 64, 32, "full", 0),
    ],
)
def test_streamed_prefill_of_many_turns(
    heads: int, head_dim: int, per_block: int, kind: MaskKind, size: int, padded: bool
) -> None:
    """The same as by the other kernel. Every program has many items, one begun beside another."""
    n, length, kv_heads = 8, 1024, 8
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (n * length // per_block, 2, kv_heads, per_block, head_dim)
    options = {"dtype": torch.bfloat16, "device": "cuda"}
    pool = torch.randn(shape, **options, generator=generator)
    q = torch.randn(n * length, heads + 2 * kv_heads, head_dim, **options, generator=generator)
    q = q[:, :heads]
    tables = torch.randperm(shape[0], device="cuda", generator=generator).int().view(n, -1)
    most = tile_tokens(heads, kv_heads)
    tiles = [
        (i * length + begin, most, i)
        for begin in reversed(range(0, length, most))
        for i in range(n)
    ]
    if padded:  # some items have none before them
        tiles[::5] = [(-1, 5, 0)] * len(tiles[::5])
    lists = [ints(*column) for column in zip(*tiles, strict=True)]
    positions = torch.arange(length, device="cuda").int().repeat(n)
    streamed, other = torch.full((2, n * length, heads * head_dim), 7.0, **options)
    for out in (streamed, other):
        prefill_attention(
            q, pool, tables, *lists, positions, out, scale=head_dim**-0.5, mask_kind=kind,
            mask_size=size, soft_cap=None, sinks=None, streamed=out is streamed,
        )  # fmt: skip
    assert_close(streamed, other.float().cpu(), torch.bfloat16)
