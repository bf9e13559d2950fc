# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""FlashInfer on our pools and tables, against float32 arithmetic; NaN is what it must not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from test_paged_attention import DEVICE, UNOWNED, Case, Layout, assert_close, ints

from slipstream.attention.interface import FULL, Mask
from slipstream.kernels.flashinfer_calls import (
    Chunks,
    Fa3Prefill,
    PlanArrays,
    XqaDecode,
    installed_version,
    plan_bytes,
)
from slipstream.kernels.page_tables import gather_tables

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or installed_version() is None,
    reason="needs an NVIDIA GPU and FlashInfer",
)
BF16 = Case(dtype=torch.bfloat16, running=1)


def case(heads: int, kv_heads: int, head_dim: int, per_block: int, mask: Mask = FULL) -> object:
    value = replace(
        BF16, heads=heads, kv_heads=kv_heads, head_dim=head_dim, per_block=per_block, mask=mask
    )
    window = f"-window-{mask.size}" if mask.size else ""
    return pytest.param(
        value, id=f"{heads}of{kv_heads}-dim-{head_dim}-blocks-of-{per_block}{window}"
    )


DECODE = [
    case(8, 2, 128, 32),
    case(32, 8, 128, 64),
    case(3, 3, 64, 16),
    case(8, 1, 64, 64),
    case(16, 2, 128, 128),
    case(16, 2, 128, 32, Mask("sliding", 70)),
    case(8, 2, 64, 32, Mask("sliding", 32)),
]
PREFILL = [
    case(8, 2, 128, 32),
    case(3, 3, 64, 16),
    case(8, 1, 128, 128),
    case(16, 2, 64, 64),
    case(4, 4, 128, 8),
]


def below_window(layout: Layout) -> None:
    """Blocks that a window has left behind are no longer the sequence's."""
    for sequence, length in enumerate(layout.lengths):
        first = int(layout.case.mask.first_visible(np.array([length - 1]))[0])
        layout.tables[layout.slots[sequence], : first // layout.case.per_block] = UNOWNED


class Decoding:
    """The last tokens of a layout's sequences, with a row of padding after them."""

    def __init__(self, layout: Layout) -> None:
        self.layout, case, n = layout, layout.case, len(layout.lengths)
        self.q = layout.queries(n + 1).contiguous()
        self.block_tables = layout.tables.to(DEVICE)
        self.rows, self.slots = ints(*range(n), -1), ints(*layout.slots, UNOWNED)
        self.positions = ints(*(length - 1 for length in layout.lengths), UNOWNED)
        self.tables = torch.full((n + 1, layout.tables.shape[1]), UNOWNED, device=DEVICE).int()
        self.lengths = ints(*[0] * (n + 1))
        self.out = torch.zeros_like(self.q)
        self.expected = torch.stack(
            [layout.reference(self.q[i], i, at - 1) for i, at in enumerate(layout.lengths)]
        ).view(n, case.heads, case.head_dim)

    def gather(self) -> None:
        case = self.layout.case
        gather_tables(
            self.block_tables, self.rows, self.slots, self.positions, self.tables, self.lengths,
            per_block=case.per_block, mask_kind=case.mask.kind, mask_size=case.mask.size,
        )  # fmt: skip

    def run(self, xqa: XqaDecode) -> None:
        self.gather()
        case = self.layout.case
        xqa.run(
            self.q, self.layout.pool, self.tables, self.lengths, self.out,
            scale=case.head_dim**-0.5, window=case.mask.size,
        )  # fmt: skip


def captured(launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
    launch()  # loads modules, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("case", DECODE)
def test_decode(case: Case) -> None:
    layout = Layout(case, [1, 64, 333, 2000])
    below_window(layout)
    decoding = Decoding(layout)
    xqa = XqaDecode(5, case.kv_heads, DEVICE)
    for _ in range(3):  # the second finds the workspace as the first left it
        decoding.out.fill_(7.0)
        decoding.run(xqa)
        assert_close(decoding.out[:-1], decoding.expected, case.dtype)


@pytest.mark.gpu
@on_gpu
def test_a_graph_of_decodes_follows_its_inputs() -> None:
    case = replace(BF16, heads=8, head_dim=128, per_block=32)
    first, second = (Decoding(Layout(case, lengths)) for lengths in ([5, 700, 31], [700, 33, 256]))
    xqa = XqaDecode(4, case.kv_heads, DEVICE)
    second.layout.pool = torch.cat((second.layout.pool, first.layout.pool))  # as large as needed
    pool = torch.empty_like(second.layout.pool)
    pool[: first.layout.pool.shape[0]] = first.layout.pool
    expected, first.layout.pool = first.expected, pool
    graph = captured(lambda: first.run(xqa))
    graph.replay()
    assert_close(first.out[:-1], expected, case.dtype)
    pool.copy_(second.layout.pool)
    for name in ("q", "block_tables", "slots", "positions"):
        getattr(first, name).copy_(getattr(second, name))
    graph.replay()
    assert_close(first.out[:-1], second.expected, case.dtype)


class Prefilling:
    """Chunks that end a layout's sequences, ``gap`` rows between them."""

    def __init__(self, layout: Layout, sizes: list[int], gap: int) -> None:
        self.layout, self.sizes = layout, sizes
        self.rows = [gap + sum(sizes[:i]) + gap * i for i in range(len(sizes))]
        self.q = layout.queries(self.rows[-1] + sizes[-1])
        self.tables = layout.tables.to(DEVICE)
        self.out = torch.full(self.q.shape, 7.0, dtype=self.q.dtype, device=DEVICE)
        columns = (self.rows, sizes, layout.slots, layout.lengths)
        self.chunks = Chunks(*(np.array(column) for column in columns))

    def plan(self, prefill: Fa3Prefill, max_rows: int, max_chunks: int, turn: int = 0) -> None:
        width, per_block = self.tables.shape[1], self.layout.case.per_block
        prefill.plan(self.chunks, max_rows, max_chunks, width, per_block, turn)

    def run(self, prefill: Fa3Prefill) -> None:
        scale = self.layout.case.head_dim**-0.5
        prefill.run(self.q, self.layout.pool, self.tables, self.out, scale=scale)

    def check(self) -> None:
        layout = self.layout
        for i, (row, size, length) in enumerate(
            zip(self.rows, self.sizes, layout.lengths, strict=True)
        ):
            for offset in sorted({0, 1, size // 3, size // 2, size - 1}):
                expected = layout.reference(self.q[row + offset], i, length - size + offset)
                assert_close(self.out[row + offset].flatten(), expected, layout.case.dtype)
            assert not self.out[row : row + size].isnan().any()


def prefill_for(case: Case) -> Fa3Prefill:
    return Fa3Prefill(
        case.heads, case.kv_heads, case.head_dim,
        max_rows=2048, max_chunks=16, depth=2, device=DEVICE,
    )  # fmt: skip


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("case", PREFILL)
def test_prefill(case: Case) -> None:
    """Whole prompts, chunks with earlier context, and one that fills its last block."""
    step = Prefilling(Layout(case, [2, 300, 513, 640, 1500]), [2, 300, 200, 64, 129], gap=0)
    prefill = prefill_for(case)
    step.plan(prefill, step.q.shape[0], 5)
    step.run(prefill)
    step.check()


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("case", PREFILL[:2])
def test_rows_between_chunks(case: Case) -> None:
    """They get zeros, those before the first chunk stay as they are."""
    step = Prefilling(Layout(case, [2, 300, 513]), [2, 300, 200], gap=3)
    prefill = prefill_for(case)
    step.plan(prefill, step.q.shape[0], 9)
    step.run(prefill)
    step.check()
    assert (step.out[:3] == 7.0).all()
    for row, size in zip(step.rows[:-1], step.sizes, strict=False):
        assert (step.out[row + size : row + size + 3] == 0.0).all()


@pytest.mark.gpu
@on_gpu
def test_a_graph_of_chunks_follows_its_plan() -> None:
    case = replace(BF16, heads=8, head_dim=128, per_block=32)
    prefill = prefill_for(case)
    step = Prefilling(Layout(case, [100, 900, 500]), [100, 300, 100], gap=0)
    none = Chunks(*np.zeros((4, 0), np.int64))
    prefill.plan(none, 1024, 8, step.tables.shape[1], case.per_block, 0)
    graph = captured(lambda: step.run(prefill))
    graph.replay()
    assert (step.out == 7.0).all()
    step.plan(prefill, 1024, 8, turn=1)
    graph.replay()
    step.check()
    step.plan(prefill, 1024, 8, turn=0)  # the same rows, of other sequences
    swapped = Chunks(np.array([0]), np.array([100]), *(c[2:] for c in step.chunks[2:]))
    prefill.plan(swapped, 1024, 8, step.tables.shape[1], case.per_block, 1)
    graph.replay()
    expected = step.layout.reference(step.q[99], 2, 499)
    assert_close(step.out[99].flatten(), expected, case.dtype)


def test_gathered_tables() -> None:
    """In the order of the step; of padding nothing but the length is read."""
    case = replace(BF16, per_block=16, kv_heads=1, mask=Mask("sliding", 20))
    layout = Layout(case, [1, 100, 37])
    below_window(layout)
    decoding = Decoding(layout)
    decoding.block_tables[0, 0] = 5
    decoding.gather()
    assert decoding.lengths.tolist() == [1, 100, 37, 1]
    own = [layout.tables[slot].tolist() for slot in layout.slots]
    gathered = decoding.tables.tolist()
    assert gathered[0][:2] == [own[0][0], UNOWNED]
    assert gathered[1][:8] == [own[1][5]] * 6 + [own[1][6], UNOWNED]
    assert gathered[2][:4] == [own[2][1], own[2][1], own[2][2], UNOWNED]
    assert gathered[3][:2] == [5, UNOWNED]


def test_long_tables_are_gathered_whole() -> None:
    block_tables = torch.randperm(3 * 2500).int().view(3, 2500).to(DEVICE)
    tables, lengths = torch.full((2, 2500), -1, device=DEVICE).int(), ints(0, 0)
    gather_tables(
        block_tables, ints(0, 1), ints(2, 1), ints(2499 * 16 + 3, 1024 * 16 - 1), tables, lengths,
        per_block=16, mask_kind="full", mask_size=0,
    )  # fmt: skip
    assert torch.equal(tables[0], block_tables[2])
    assert torch.equal(tables[1, :1024], block_tables[1, :1024])
    assert (tables[1, 1024:] == -1).all()
    assert lengths.tolist() == [2499 * 16 + 4, 1024 * 16]


def test_arrays_of_a_plan() -> None:
    """Rows between chunks belong to sequences of length 0; those that are missing have no rows."""
    chunks = Chunks(*map(np.array, ([2, 7, 10], [5, 3, 4], [4, 0, 1], [5, 40, 4])))
    rows, tables, lengths = PlanArrays.of(chunks, 5, 100)
    assert rows.tolist() == [2, 7, 10, 14, 14, 14]
    assert tables.tolist()[:3] == [400, 0, 100]
    assert lengths.tolist() == [5, 40, 4, 0, 0]
    apart = chunks._replace(rows=np.array([2, 8, 20]))
    rows, tables, lengths = PlanArrays.of(apart, 5, 100)
    assert rows.tolist() == [2, 7, 8, 11, 20, 24]
    assert tables.tolist()[0::2] == [400, 0, 100]
    assert lengths.tolist() == [5, 0, 40, 0, 4]
    assert rows.dtype == tables.dtype == lengths.dtype == torch.int32


def test_arrays_of_a_plan_without_chunks() -> None:
    rows, _, lengths = PlanArrays.of(Chunks(*np.zeros((4, 0), np.int64)), 3, 100)
    assert rows.tolist() == [0, 0, 0, 0]
    assert lengths.tolist() == [0, 0, 0]


def test_room_for_a_plan() -> None:
    """Seven arrays of tiles and heads, and one of SMs."""
    tiles = 8192 // 128 + 255
    assert plan_bytes(32, 8192, 256, 132) >= 7 * 4 * tiles * 32 + 4 * 133
