# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Streamed decode attention: where, how it is shared out, and, on the GPUs for it, how right."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from test_paged_attention import (
    DEVICE,
    UNOWNED,
    Case,
    Layout,
    assert_close,
    case,
    decode,
    fill,
    schedule_of,
    workspace_of,
)

from slipstream.attention.interface import FULL, Mask
from slipstream.attention.kv_scale import FP8
from slipstream.kernels.paged_decode import (
    decode_attention,
    decode_programs,
    decode_tile,
    streams_decode,
)

hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)
CASES = [
    case("bf16-128", head_dim=128),
    case("bf16-64", head_dim=64),
    case("fp16-128", head_dim=128, dtype=torch.float16),
    case("fp16-64", head_dim=64, dtype=torch.float16, per_block=64),
    case("blocks-of-32", head_dim=128, per_block=32, heads=8),
    case("blocks-of-64", head_dim=128, per_block=64, heads=8),
    case("blocks-of-128", head_dim=128, per_block=128, heads=8),
    case("blocks-of-128-64", head_dim=64, per_block=128, heads=8),
    case("blocks-of-256-64", head_dim=64, per_block=256, heads=8),
    case("group-of-1", head_dim=128, heads=3, kv_heads=3, per_block=32),
    case("group-of-1-64", head_dim=64, heads=3, kv_heads=3),
    case("group-of-7", head_dim=128, heads=28, kv_heads=4, per_block=32),
    case("group-of-8", head_dim=64, heads=64, kv_heads=8, per_block=32, sinks=True),
    case("group-of-64", head_dim=128, heads=64, kv_heads=1, per_block=64),
    case("sliding", head_dim=128, mask=Mask("sliding", 70), heads=8),
    case("sliding-64", head_dim=64, mask=Mask("sliding", 128), sinks=True, heads=16),
    case("window-of-1", head_dim=128, mask=Mask("sliding", 1), per_block=32),
    case("chunked", head_dim=128, mask=Mask("chunked", 96), per_block=64),
    case("soft-cap", head_dim=128, soft_cap=3.0, heads=8, per_block=32),
    case("all", head_dim=128, sinks=True, mask=Mask("chunked", 50), soft_cap=2.0, heads=8),
    case("one-program", head_dim=128, running=1, heads=8),
    case("every-tile-a-part", head_dim=128, running=1000, heads=8, sinks=True),
    case("as-many-as-sms", head_dim=128, running=132, heads=32, kv_heads=8, per_block=32),
]

# Around the edges of tiles and blocks, and of several rounds of the ring.
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 333, 1024, 2049]


def streamed(case: Case) -> Case:
    dtype = torch.bfloat16 if case.dtype == torch.float32 else case.dtype
    return replace(case, dtype=dtype, streamed=True)


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("case", CASES)
def test_streamed_decode(case: Case) -> None:
    """Also beside the other kernel, whose results differ by how they are rounded alone."""
    case = streamed(case)
    layout = Layout(case, LENGTHS)
    assert streams_decode(case.heads, layout.pool)
    for i, length in enumerate(layout.lengths):
        layout.hide(i, int(case.mask.first_visible(np.array([length - 1]))[0]))
    n = len(layout.lengths)
    q = layout.queries(n)
    expected = torch.stack(
        [layout.reference(q[i], i, length - 1) for i, length in enumerate(layout.lengths)]
    )
    every = list(range(n))
    schedule = schedule_of(case, n + 5)
    workspace = workspace_of(case, schedule)
    for rows in (every, [-1, *every[::-1], -1, -1], every):
        out = decode(layout, q, rows, schedule, workspace)
        assert_close(out, expected, case.dtype)
        assert not workspace.arrivals.any()
    tiles = decode(replace_case(layout, streamed=False), q, every)
    assert_close(out, tiles.float().cpu(), case.dtype)


def replace_case(layout: Layout, **changes: object) -> Layout:
    other = copy.copy(layout)
    other.case = replace(layout.case, **changes)
    return other


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("running", [1, 5, 132])
def test_streamed_launches_follow_each_other(running: int) -> None:
    """Each begins while the one before ends, in the same workspace: all results are the same."""
    case = streamed(Case(heads=8, head_dim=128, per_block=32, running=running))
    layout = Layout(case, [700, 1, 64, 65, 3000])
    q, n = layout.queries(5), 5
    schedule = schedule_of(case, n)
    workspace = workspace_of(case, schedule)
    fill(schedule, case, list(range(n)), layout.slots, [length - 1 for length in layout.lengths])
    tables = layout.tables.to(DEVICE)
    outs = torch.full((50, n, 8 * 128), float("nan"), dtype=case.dtype, device=DEVICE)
    for out in outs:
        decode_attention(
            q, layout.pool, tables, out, workspace, schedule, n=n, sinks=None, **case.options
        )
    for i, length in enumerate(layout.lengths):
        assert_close(outs[0, i], layout.reference(q[i], i, length - 1), case.dtype)
    assert torch.equal(outs[1:], outs[:1].expand(49, -1, -1))
    assert not workspace.arrivals.any()


@pytest.mark.gpu
@hopper
def test_a_streamed_decode_of_padding_alone_does_nothing() -> None:
    layout = Layout(streamed(Case()), [30])
    assert (decode(layout, layout.queries(1), [-1, -1, -1]) == 7.0).all()


@pytest.mark.gpu
@hopper
def test_a_streamed_decode_leaves_other_rows_alone() -> None:
    layout = Layout(streamed(Case()), [30, 40, 50])
    q = layout.queries(3)
    out = decode(layout, q, [1, -1])
    assert_close(out[1], layout.reference(q[1], 1, 39), torch.bfloat16)
    assert (out[[0, 2]] == 7.0).all()


@pytest.mark.parametrize("running", [1, 6, 33, 132])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("mask", [FULL, Mask("sliding", 70), Mask("chunked", 96)], ids=str)
@pytest.mark.parametrize(
    "lengths",
    [[1], [0], [64, 65, 1000], [0, 5, 0, 0, 4000, 1, 0], [700] * 70, [1024] * 40 + [65536]],
    ids=len,
)
def test_programs_share_all_tiles(
    lengths: list[int], mask: Mask, kv_heads: int, running: int
) -> None:
    case = Case(mask=mask, kv_heads=kv_heads, running=running, streamed=True)
    tile = decode_tile(case.head_dim, True)
    rows = [i if length else -1 for i, length in enumerate(lengths)]
    slots = [i + 5 if length else UNOWNED for i, length in enumerate(lengths)]
    schedule = schedule_of(case, len(lengths))
    schedule.items.fill_(77)
    assert schedule.programs is not None
    schedule.programs.fill_(77)
    fill(schedule, case, rows, slots, [max(length - 1, 0) for length in lengths])
    wanted = [
        (row, head, tile_of)
        for row, length in enumerate(lengths)
        for head in range(kv_heads)
        for tile_of in range(
            int(mask.first_visible(np.array([length - 1]))[0]) // tile if length else 0,
            -(-length // tile),
        )
    ]
    share = max(-(-len(wanted) // running), 1)
    items, found, numbers = schedule.items.tolist(), [], []
    for program, (first_item_of, last) in enumerate(schedule.programs.tolist()):
        begin = len(found)
        for number in range(first_item_of, last):
            row, slot, end, head, first, stop, first_item, parts = items[number]
            assert (slot, end) == (row + 5, lengths[row])
            assert stop > first
            assert 0 <= number - first_item < parts
            assert items[first_item][:4] == [row, slot, end, head]
            assert items[first_item][7] == parts
            found += [(row, head, tile_of) for tile_of in range(first, stop)]
            numbers.append(number)
        assert len(found) - begin == max(min(share, len(wanted) - program * share), 0)
    assert found == wanted
    assert len(set(numbers)) == len(numbers)
    assert {number for number, item in enumerate(items) if item[7]} == set(numbers)
    parts_of = [items[number][6] for number in numbers]
    assert all(parts_of.count(items[number][6]) == items[number][7] for number in numbers)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.kernels.paged_decode.streams", lambda device: True)


@pytest.mark.usefixtures("on_hopper")
def test_what_is_streamed() -> None:
    def able(heads: int = 32, per_block: int = 32, dim: int = 128, **options: object) -> bool:
        options = {"dtype": torch.bfloat16, "device": "meta", **options}
        return streams_decode(heads, torch.empty(10, 2, 8, per_block, dim, **options))

    assert able()
    assert able(dtype=torch.float16)
    assert able(heads=8)
    assert able(heads=512)
    assert not able(heads=520), "more queries than rows"
    assert able(dim=64)
    assert not able(dim=96)
    assert not able(dim=256)
    assert able(per_block=16)
    assert not able(per_block=8)
    assert not able(dtype=torch.float32)
    assert not able(dtype=FP8)
    pool = torch.empty(2**20, 2, 64, 16, 64, dtype=torch.bfloat16, device="meta")
    assert not streams_decode(64, pool), "more rows than 32 bits count"


def test_elsewhere_nothing_is_streamed() -> None:
    assert not streams_decode(32, torch.empty(10, 2, 8, 32, 128, dtype=torch.bfloat16))


def test_programs_of_each_kernel() -> None:
    assert (decode_programs(132, False), decode_programs(132, True)) == (396, 132)
    assert [decode_tile(dim, False) for dim in (64, 128, 256)] == [64, 64, 32]
    assert [decode_tile(dim, True) for dim in (64, 128)] == [128, 64]
