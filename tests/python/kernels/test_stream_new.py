# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Streamed decodes that prepare queries and keys themselves, beside ``prepare_qkv`` before them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

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
    fill,
    schedule_of,
    workspace_of,
)
from test_stream_decode import LENGTHS, hopper, streamed

from slipstream.attention.interface import Mask
from slipstream.kernels.paged_decode import decode_attention
from slipstream.kernels.qkv import Unprepared, prepare_qkv
from slipstream.layers.rotary import RopeSpec, RotaryEmbedding


@dataclass(frozen=True)
class Made:
    """How queries and keys are made ready. rotated: leading dims of a head; None: all of them."""

    rotated: int | None = None
    style: str = "halves"
    norm: str = ""
    weights: torch.dtype = torch.bfloat16
    factor: bool = False


def param(name: str, case: Case, **made: Any) -> Any:
    return pytest.param(streamed(case), Made(**made), id=name)


PLAIN = Case(heads=32, kv_heads=8, head_dim=128, per_block=32)
SMALL = replace(PLAIN, head_dim=64, heads=16)
CASES = [
    param("rope", PLAIN),
    param("norm", PLAIN, norm="before"),
    param("norm-after", PLAIN, norm="after", weights=torch.float32),
    param("nothing", PLAIN, rotated=0),
    param("norm-alone", PLAIN, rotated=0, norm="before"),
    param("interleaved", PLAIN, style="interleaved", factor=True),
    param("interleaved-norm", PLAIN, style="interleaved", norm="before"),
    param("partial", PLAIN, rotated=64),
    param("partial-96", PLAIN, rotated=96),
    param("partial-norm", PLAIN, rotated=32, norm="before"),
    param("partial-interleaved", SMALL, rotated=32, style="interleaved", norm="after"),
    param("64", SMALL),
    param("64-norm", SMALL, norm="before", factor=True),
    param("fp16", replace(PLAIN, dtype=torch.float16), norm="before"),
    param("fp16-64", replace(SMALL, dtype=torch.float16), norm="after"),
    param("blocks-of-16", replace(PLAIN, per_block=16)),
    param("blocks-of-64", replace(PLAIN, per_block=64)),
    param("blocks-of-256", replace(SMALL, per_block=256)),
    param("group-of-1", replace(PLAIN, heads=8)),
    param("group-of-7", replace(PLAIN, heads=28, kv_heads=4), norm="before"),
    param("group-of-16", replace(PLAIN, heads=32, kv_heads=2), norm="before"),
    param("group-of-64", replace(PLAIN, heads=64, kv_heads=1), norm="before"),
    param("sliding", replace(PLAIN, mask=Mask("sliding", 70))),
    param("window-of-1", replace(PLAIN, mask=Mask("sliding", 1))),
    param("chunked", replace(PLAIN, mask=Mask("chunked", 64)), norm="after"),
    param("soft-cap-sinks", replace(PLAIN, soft_cap=3.0, sinks=True), norm="before"),
    param("one-program", replace(PLAIN, running=1)),
    param("every-tile-a-part", replace(PLAIN, running=2000, sinks=True), norm="before"),
    param("as-many-as-sms", replace(PLAIN, running=132), norm="before"),
]


def bits(pool: torch.Tensor) -> torch.Tensor:
    """What can be compared where there is NaN."""
    return pool.view(torch.int16)


class Step:
    """A single token of each sequence, whose keys and values the cache lacks: it has NaN there.

    The last token belongs to no sequence, and nothing of it is wanted.
    """

    def __init__(self, case: Case, made: Made) -> None:
        self.case = case
        self.layout = Layout(case, LENGTHS)
        self.n = len(LENGTHS)
        tokens = self.n + 1
        generator = torch.Generator().manual_seed(2)

        def random(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

        self.qkv = random(tokens, case.heads + 2 * case.kv_heads, case.head_dim)
        slots = []
        for i, length in enumerate(LENGTHS):
            self.layout.hide(i, int(case.mask.first_visible(np.array([length - 1]))[0]))
            block = int(self.layout.tables[self.layout.slots[i], (length - 1) // case.per_block])
            offset = (length - 1) % case.per_block
            self.layout.pool[block, :, :, offset] = float("nan")
            slots.append(block * case.per_block + offset)
        rotated = case.head_dim if made.rotated is None else made.rotated
        cos = sin = None
        if rotated:
            positions = torch.tensor([*(length - 1 for length in LENGTHS), 5], device=DEVICE)
            spec = RopeSpec(1e4, rotated, made.style)  # type: ignore[arg-type]
            cos, sin = RotaryEmbedding(spec, case.dtype).tables(positions)
        weights = [random(case.head_dim, dtype=made.weights) if made.norm else None for _ in "qk"]
        self.new = Unprepared(
            write_slots=torch.tensor([*slots, -1], device=DEVICE),
            cos=cos,
            sin=sin,
            style=made.style,
            q_norm=weights[0],
            k_norm=weights[1],
            eps=1e-6,
            norm_after_rope=made.norm == "after",
            q_factor=random(tokens) if made.factor else None,
        )
        self.schedule = schedule_of(case, self.n + 5)
        self.workspace = workspace_of(case, self.schedule)
        self.tables = self.layout.tables.to(DEVICE)

    def run(
        self, qkv: torch.Tensor, pool: torch.Tensor, rows: list[int], new: Unprepared | None
    ) -> torch.Tensor:
        slots = [self.layout.slots[row] if row >= 0 else UNOWNED for row in rows]
        fill(self.schedule, self.case, rows, slots, [length - 1 for length in LENGTHS])
        # Not a dependent launch: see decode_attention.
        out = torch.full(
            (self.n + 1, self.case.heads * self.case.head_dim),
            7.0,
            dtype=self.case.dtype,
            device=DEVICE,
        )
        self.launch(qkv, pool, out, len(rows), new)
        return out

    def launch(
        self,
        qkv: torch.Tensor,
        pool: torch.Tensor,
        out: torch.Tensor,
        n: int,
        new: Unprepared | None,
    ) -> None:
        decode_attention(
            qkv[:, : self.case.heads],
            pool,
            self.tables,
            out,
            self.workspace,
            self.schedule,
            n=n,
            sinks=self.layout.sinks,
            new=new,
            **self.case.options,
        )


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize(("case", "made"), CASES)
def test_streamed_decode_of_new_tokens(case: Case, made: Made) -> None:
    step = Step(case, made)
    every = list(range(step.n))
    qkv, pool = step.qkv.clone(), step.layout.pool.clone()
    options = {field.name: getattr(step.new, field.name) for field in fields(step.new)}
    prepare_qkv(qkv, pool, **options, kv_heads=case.kv_heads)
    expected = step.run(qkv, pool, every, None)
    assert not expected.isnan().any()
    for rows in (every, [-1, *every[::-1], -1, -1], every):
        given, cache = step.qkv.clone(), step.layout.pool.clone()
        out = step.run(given, cache, rows, step.new)
        assert torch.equal(given, step.qkv)
        if not made.norm:
            assert torch.equal(bits(cache), bits(pool))
        else:  # squares are added up in another order
            torch.testing.assert_close(cache, pool, rtol=1e-2, atol=1e-2, equal_nan=True)
        assert_close(out, expected.float().cpu(), case.dtype)
        # Else parts are cut elsewhere, or squares of queries added up in another order.
        if rows == every and not made.norm:
            assert torch.equal(out, expected)
        assert not step.workspace.arrivals.any()


@pytest.mark.gpu
@hopper
@pytest.mark.parametrize("running", [1, 5, 132])
def test_launches_that_prepare_follow_each_other(running: int) -> None:
    """Each reads of the cache before the one before has ended, but nothing that this one writes."""
    step = Step(streamed(replace(PLAIN, running=running)), Made(norm="before"))
    pool = step.layout.pool
    first = step.run(step.qkv, pool, list(range(step.n)), step.new)
    outs = torch.full((50, *first.shape), 7.0, dtype=first.dtype, device=DEVICE)
    cache = pool.clone()
    for out in outs:
        step.launch(step.qkv, pool, out, step.n, step.new)
    assert torch.equal(outs, first.expand(50, -1, -1))
    assert torch.equal(bits(pool), bits(cache))
    assert not step.workspace.arrivals.any()


@pytest.mark.gpu
@hopper
def test_padding_alone_stores_nothing() -> None:
    step = Step(streamed(PLAIN), Made())
    before = bits(step.layout.pool).clone()
    assert (step.run(step.qkv, step.layout.pool, [-1, -1], step.new) == 7.0).all()
    assert torch.equal(bits(step.layout.pool), before)


def test_other_kernels_prepare_nothing() -> None:
    case = Case(head_dim=64)
    layout, schedule = Layout(case, [1]), schedule_of(case, 1)
    with pytest.raises(AssertionError, match="only streamed decodes prepare queries and keys"):
        decode_attention(
            layout.queries(1),
            layout.pool,
            layout.tables.to(DEVICE),
            torch.empty(1, 256, device=DEVICE),
            workspace_of(case, schedule),
            schedule,
            n=1,
            sinks=None,
            new=Unprepared(torch.tensor([0])),
            **case.options,
        )
