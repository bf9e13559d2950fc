# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Paged attention against float32 arithmetic, with NaN wherever a kernel must not look."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from slipstream.attention.interface import FULL, Mask
from slipstream.attention.kv_cache import bits_of
from slipstream.attention.kv_scale import FP8, to_fp8
from slipstream.kernels.decode_schedule import (
    DecodeSchedule,
    decode_schedule,
    schedule_decodes,
)
from slipstream.kernels.paged_decode import (
    DecodeWorkspace,
    decode_attention,
    decode_tile,
    decode_workspace,
)
from slipstream.kernels.paged_prefill import prefill_attention, tile_tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNOWNED = 2**30  # a block that no pool has: reading a table where it must not be read fails


@dataclass(frozen=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    per_block: int = 16
    dtype: torch.dtype = torch.float32
    mask: Mask = FULL
    soft_cap: float | None = None
    sinks: bool = False
    running: int = 7  # programs at a time
    num_sms: int = 100
    scales: tuple[float, float] | None = None  # of keys and values in e4m3; None: as dtype
    streamed: bool = False

    @property
    def options(self) -> dict:
        key_scale, value_scale = self.scales or (1.0, 1.0)
        return {
            "key_scale": key_scale,
            "value_scale": value_scale,
            "scale": self.head_dim**-0.5,
            "mask_kind": self.mask.kind,
            "mask_size": self.mask.size,
            "soft_cap": self.soft_cap,
        }


def case(name: str, **changes: object) -> object:
    return pytest.param(replace(Case(), **changes), id=name)


CASES = [
    case("plain"),
    case("bf16", dtype=torch.bfloat16, head_dim=128),
    case("fp16", dtype=torch.float16),
    case("mha", heads=3, kv_heads=3, per_block=32),
    case("group-of-8", heads=8, kv_heads=1, per_block=64),
    case("group-of-5", heads=10, kv_heads=2),
    case("dim-80", head_dim=80, dtype=torch.bfloat16, per_block=32),
    case("dim-96", head_dim=96),
    case("dim-192", head_dim=192, dtype=torch.bfloat16, kv_heads=1),
    case("dim-256", head_dim=256, dtype=torch.bfloat16, per_block=64, kv_heads=1),
    case("large-blocks", per_block=128, mask=Mask("sliding", 40)),
    case("sliding", mask=Mask("sliding", 70), per_block=16),
    case("window-of-1", mask=Mask("sliding", 1), per_block=32),
    case("chunked", mask=Mask("chunked", 96), per_block=64),
    case("soft-cap", soft_cap=3.0),
    case("sinks", sinks=True, heads=8),
    case("sinks-sliding-bf16", sinks=True, mask=Mask("sliding", 70), dtype=torch.bfloat16),
    case("all", sinks=True, mask=Mask("chunked", 50), soft_cap=2.0, heads=8, running=1),
    case("one-at-a-time", running=1, dtype=torch.bfloat16),
    case("fp8", scales=(0.03, 0.007)),
    case("fp8-bf16", scales=(0.5, 3.0), dtype=torch.bfloat16, head_dim=128),
    case("fp8-fp16", scales=(1.0, 1.0), dtype=torch.float16, kv_heads=4),
    case("fp8-dim-80", scales=(0.25, 0.1), head_dim=80, per_block=32, heads=8),
    case("fp8-sliding", scales=(0.02, 0.04), mask=Mask("sliding", 70)),
    case("fp8-sinks-cap", scales=(0.3, 1.7), sinks=True, soft_cap=2.0, heads=8),
    case("fp8-chunked", scales=(0.3, 1.7), mask=Mask("chunked", 50), running=1, sinks=True),
    case("fp8-many-programs", scales=(0.1, 2.0), running=40, per_block=64, heads=16, kv_heads=1),
    case("many-programs", running=40, per_block=32, heads=16, kv_heads=1, head_dim=128),
]


class Layout:
    """Sequences in a pool of shuffled blocks; what their tokens do not own is NaN."""

    def __init__(self, case: Case, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.case, self.lengths = case, lengths
        per_block = case.per_block
        width = max(lengths) // per_block + 2
        needed = [-(-length // per_block) for length in lengths]
        shape = (sum(needed) + 2, 2, case.kv_heads, per_block, case.head_dim)
        pool = torch.full(shape, float("nan"))
        order = torch.randperm(shape[0], generator=generator)
        # Rows of the table are slots, here those of the sequences in reverse.
        self.tables = torch.full((len(lengths), width), UNOWNED, dtype=torch.int32)
        self.slots = [len(lengths) - 1 - i for i in range(len(lengths))]
        self.keys, self.values = [], []
        for i, length in enumerate(lengths):
            kv = torch.randn(2, case.kv_heads, length, case.head_dim, generator=generator)
            if case.scales is None:
                scales, kv = torch.ones(2), kv.to(case.dtype).float()
            else:  # kv becomes what is stored
                scales = torch.tensor(case.scales)
                kv = to_fp8(kv, scales[:, None, None, None]).float()
            self.keys.append(kv[0] * scales[0])
            self.values.append(kv[1] * scales[1])
            begin = sum(needed[:i])
            self.tables[self.slots[i], : needed[i]] = order[begin : begin + needed[i]].int()
            for position in range(length):
                block = self.tables[self.slots[i], position // per_block]
                pool[block, :, :, position % per_block] = kv[:, :, position]
        self.pool = pool.to(case.dtype if case.scales is None else FP8).to(DEVICE)
        self.sinks = None
        if case.sinks:
            self.sinks = torch.randn(case.heads, generator=generator).to(DEVICE)

    def hide(self, sequence: int, first_seen: int) -> None:
        """Takes from a sequence what lies below the first position that a mask shows."""
        per_block, slot = self.case.per_block, self.slots[sequence]
        for position in range(first_seen):
            block = int(self.tables[slot, position // per_block])
            hidden = bits_of(self.pool)[block, :, :, position % per_block]
            hidden.view(self.pool.dtype).copy_(torch.tensor(float("nan")))
        self.tables[slot, : first_seen // per_block] = UNOWNED

    def queries(self, tokens: int) -> torch.Tensor:
        heads = self.case.heads + 2 * self.case.kv_heads
        qkv = torch.randn(tokens, heads, self.case.head_dim, generator=torch.manual_seed(1))
        return qkv.to(self.case.dtype).to(DEVICE)[:, : self.case.heads]

    def reference(self, q: torch.Tensor, sequence: int, position: int) -> torch.Tensor:
        """What one token should get: ``[heads * head_dim]``. q: ``[heads, head_dim]``."""
        case = self.case
        first = int(case.mask.first_visible(np.array([position]))[0])
        group = case.heads // case.kv_heads
        seen = slice(first, position + 1)
        keys = self.keys[sequence][:, seen].repeat_interleave(group, 0)
        values = self.values[sequence][:, seen].repeat_interleave(group, 0)
        scores = (keys @ q.float().cpu()[:, :, None])[..., 0] * case.head_dim**-0.5
        if case.soft_cap is not None:
            scores = (scores / case.soft_cap).tanh() * case.soft_cap
        if self.sinks is not None:
            scores = torch.cat((scores, self.sinks.cpu()[:, None]), 1)
        weights = scores.softmax(1)[:, : position + 1 - first]
        return (weights[:, None] @ values).flatten()


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
    actual = actual.float().cpu()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def schedule_of(case: Case, n: int) -> DecodeSchedule:
    return decode_schedule(
        n, case.kv_heads, case.running, case.num_sms, DEVICE, streamed=case.streamed
    )


def fill(
    schedule: DecodeSchedule, case: Case, rows: list[int], slots: list[int], positions: list[int]
) -> None:
    schedule_decodes(
        ints(*rows),
        ints(*slots),
        ints(*positions),
        schedule,
        tile=decode_tile(case.head_dim, case.streamed),
        mask_kind=case.mask.kind,
        mask_size=case.mask.size,
    )


def workspace_of(case: Case, schedule: DecodeSchedule) -> DecodeWorkspace:
    return decode_workspace(schedule, case.heads, case.head_dim)


def decode(
    layout: Layout,
    q: torch.Tensor,
    rows: list[int],
    schedule: DecodeSchedule | None = None,
    workspace: DecodeWorkspace | None = None,
) -> torch.Tensor:
    """The last token of each of ``rows``, which are sequences or padding."""
    case, n = layout.case, len(layout.lengths)
    positions = [length - 1 for length in layout.lengths]
    slots = [layout.slots[row] if row >= 0 else UNOWNED for row in rows]
    schedule = schedule or schedule_of(case, len(rows))
    workspace = workspace or workspace_of(case, schedule)
    fill(schedule, case, rows, slots, positions)
    # Not a dependent launch: see decode_attention.
    out = torch.full((n, case.heads * case.head_dim), 7.0, dtype=case.dtype, device=DEVICE)
    decode_attention(
        q,
        layout.pool,
        layout.tables.to(DEVICE),
        out,
        workspace,
        schedule,
        n=len(rows),
        sinks=layout.sinks,
        **case.options,
    )
    return out


@pytest.mark.parametrize("case", CASES)
def test_decode(case: Case) -> None:
    layout = Layout(case, [1, 64, 333])
    for i, length in enumerate(layout.lengths):
        layout.hide(i, int(case.mask.first_visible(np.array([length - 1]))[0]))
    n = len(layout.lengths)
    q = layout.queries(n)
    schedule = schedule_of(case, 9)
    workspace = workspace_of(case, schedule)
    expected = torch.stack(
        [layout.reference(q[i], i, length - 1) for i, length in enumerate(layout.lengths)]
    )
    for rows in ([-1, 0, 1, -1, 2, -1], [2, 1, 0]):
        assert_close(decode(layout, q, rows, schedule, workspace), expected, case.dtype)
        assert not workspace.arrivals.any()  # the next launch finds them as this one did


Chunk = tuple[int, int, int]  # sequence, first position, tokens


def prefill(
    layout: Layout, chunks: list[Chunk], streamed: bool | None = None, times: int = 1
) -> None:
    """Compares chunks, cut into tiles and the last first, with what they should get.

    times: launches, one right after the other.
    """
    case = layout.case
    most = tile_tokens(case.heads, case.kv_heads)
    tiles, positions, expected_of = [], [], []
    for sequence, first, tokens in chunks:
        for begin in range(0, tokens, most):
            row = len(positions) + begin
            tiles.append((row, min(most, tokens - begin), layout.slots[sequence]))
        expected_of += [(sequence, first + token) for token in range(tokens)]
        positions += range(first, first + tokens)
    tiles.append((-1, 5, 0))
    tiles.reverse()
    q = layout.queries(len(positions) + 1)  # one row belongs to no tile
    out = torch.full((len(q), case.heads * case.head_dim), 7.0, dtype=case.dtype, device=DEVICE)
    rows, sizes, slots = zip(*tiles, strict=True)
    arguments = (
        *(q, layout.pool, layout.tables.to(DEVICE)),
        *(ints(*rows), ints(*sizes), ints(*slots), ints(*positions, 0)),
    )
    for _ in range(times):
        prefill_attention(*arguments, out, sinks=layout.sinks, streamed=streamed, **case.options)
    expected = [layout.reference(q[i], *where) for i, where in enumerate(expected_of)]
    assert_close(out[:-1], torch.stack(expected), case.dtype)
    assert (out[-1] == 7.0).all()


@pytest.mark.parametrize("case", CASES)
def test_prefill(case: Case) -> None:
    layout = Layout(case, [40, 137])
    layout.hide(1, int(case.mask.first_visible(np.array([110]))[0]))
    prefill(layout, [(0, 0, 40), (1, 110, 27)], streamed=False)


def test_decode_leaves_other_rows_alone() -> None:
    layout = Layout(Case(), [30, 40, 50])
    q = layout.queries(3)
    out = decode(layout, q, [1, -1])
    assert_close(out[1], layout.reference(q[1], 1, 39), torch.float32)
    assert (out[[0, 2]] == 7.0).all()


def test_decode_of_padding_alone_does_nothing() -> None:
    layout = Layout(Case(), [30])
    assert (decode(layout, layout.queries(1), [-1, -1, -1]) == 7.0).all()


def test_a_tile_has_as_many_tokens_as_its_heads_leave_room_for() -> None:
    assert tile_tokens(32, 8) == 32
    assert tile_tokens(8, 8) == 128
    assert tile_tokens(10, 2) == 25
    assert tile_tokens(71, 1) == 1


def test_a_scale_that_is_not_positive_is_refused() -> None:
    layout, schedule = Layout(Case(), [1]), schedule_of(Case(), 1)
    with pytest.raises(ValueError, match="scale must be positive, got -1"):
        decode_attention(
            layout.queries(1),
            layout.pool,
            layout.tables.to(DEVICE),
            torch.empty(1, 256, device=DEVICE),
            workspace_of(Case(), schedule),
            schedule,
            n=1,
            sinks=None,
            **{**Case().options, "scale": -1.0},
        )


@pytest.mark.parametrize(("running", "num_sms"), [(1, 1), (6, 2), (33, 11), (396, 132)])
@pytest.mark.parametrize("mask", [FULL, Mask("sliding", 70), Mask("chunked", 96)], ids=str)
@pytest.mark.parametrize(
    "lengths",
    [[1], [0], [64, 65, 1000], [0, 5, 0, 0, 4000, 1, 0], [700] * 70, [1024] * 40 + [65536]],
    ids=len,
)
def test_every_tile_is_read_once(
    lengths: list[int], mask: Mask, running: int, num_sms: int
) -> None:
    case = Case(mask=mask, running=running, num_sms=num_sms)
    tile = decode_tile(case.head_dim, False)
    rows = [i if length else -1 for i, length in enumerate(lengths)]
    slots = [i + 5 if length else UNOWNED for i, length in enumerate(lengths)]
    schedule = schedule_of(case, len(lengths))
    schedule.items.fill_(77)
    fill(schedule, case, rows, slots, [max(length - 1, 0) for length in lengths])
    read: dict[tuple[int, int], list[int]] = {}
    first_items: list[int] = []
    items = schedule.items.tolist()
    for number, (row, slot, end, head, first, stop, first_item, parts) in enumerate(items):
        if parts == 0:
            continue
        assert (slot, end) == (row + 5, lengths[row])
        assert stop > first
        assert 0 <= number - first_item < parts
        assert items[first_item][7] == parts
        assert items[first_item][:4] == [row, slot, end, head]
        read.setdefault((row, head), []).extend(range(first, stop))
        first_items.append(first_item)
    for row, length in enumerate(lengths):
        seen = int(mask.first_visible(np.array([length - 1]))[0]) // tile
        for head in range(case.kv_heads):
            expected = list(range(seen, -(-length // tile))) if length else None
            assert read.get((row, head)) == expected
    assert len(read) == len(set(first_items))


@pytest.mark.parametrize(
    ("lengths", "kv_heads", "parts"),
    [
        ([131072], 8, [49]),
        ([131072], 1, [128]),  # the last to finish reads them all
        ([1024], 8, [16]),
        ([4096] * 8, 8, [6] * 8),
        ([1024] * 32, 8, [1] * 32),  # every SM has work: short ones stay whole
        ([1024] * 64, 8, [1] * 64),
        ([4096] * 64, 8, [3] * 64),  # whole they would be a wave and a quarter
        ([2048] * 256, 8, [1] * 256),
        ([1024] * 100 + [32768], 8, [1] * 100 + [12]),
        ([32768] + [0] * 511, 8, [47] + [0] * 511),  # padding counts for nothing
    ],
)
def test_parts_fill_the_gpu(lengths: list[int], kv_heads: int, parts: list[int]) -> None:
    case = Case(kv_heads=kv_heads, running=396, num_sms=132)
    schedule = schedule_of(case, len(lengths))
    rows = [i if length else -1 for i, length in enumerate(lengths)]
    fill(schedule, case, rows, rows, [max(length - 1, 0) for length in lengths])
    found = {row: count for row, *_, count in schedule.items.tolist() if count}
    assert [found.get(row, 0) for row in range(len(lengths))] == parts


def test_a_schedule_has_room_for_its_sequences() -> None:
    schedule = schedule_of(Case(), 2)
    with pytest.raises(AssertionError, match="too small"):
        fill(schedule, Case(), [0, 1, 2], [0, 1, 2], [5, 5, 5])
