# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens and draws on the device against those of torch."""

from __future__ import annotations

import pytest
import torch

from slipstream.sampling.draw import draw

pytest.importorskip("triton")

from slipstream.kernels import argmax, sampling
from slipstream.kernels.argmax import greedy
from slipstream.kernels.sampling import draw_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("programs", [4, 1024])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 100), (3, 2048), (2, 20_001), (5, 5000)])
def test_greedy(
    dtype: torch.dtype, rows: int, vocab: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argmax, "_PROGRAMS", programs)  # whether rows are split
    generator = torch.Generator().manual_seed(0)
    # Few distinct values, so that the first of equals matters.
    logits = torch.randint(-5, 6, (rows, vocab), generator=generator).to(dtype)
    logits[-1] -= 1000.0
    if rows > 1:
        logits[0, vocab - 1], logits[1, 7] = float("nan"), float("-inf")
    tokens = torch.full((rows,), -1, dtype=torch.int32, device=DEVICE)
    finite = torch.full((rows,), 9, dtype=torch.uint8, device=DEVICE)
    arrivals = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    for _ in range(2):  # the first call must leave nothing that the second one trips over
        greedy(logits.to(DEVICE), tokens, finite, arrivals)
    expected = logits.isfinite().all(-1)
    assert finite.tolist() == expected.to(torch.uint8).tolist()
    first = (logits == logits.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    assert tokens.cpu()[expected].tolist() == first[expected].tolist()
    assert 0 <= tokens.min() <= tokens.max() < vocab


def parameters(rows: int) -> tuple[torch.Tensor, ...]:
    """Temperatures, top-k, top-p and min-p: every combination of some."""
    choices = torch.cartesian_prod(
        torch.tensor([0.3, 1.5]),
        torch.tensor([0.0, 1.0, 40.0, 5000.0, 1e6]),
        torch.tensor([0.0, 0.2, 0.95, 1.0]),
        torch.tensor([0.0, 0.05]),
    )
    order = torch.randperm(len(choices), generator=torch.Generator().manual_seed(rows))
    temperature, top_k, top_p, min_p = choices[order[:rows]].unbind(-1)
    return temperature.contiguous(), top_k.long(), top_p.contiguous(), min_p.contiguous()


def drawn(logits: torch.Tensor, uniform: torch.Tensor, *filters: torch.Tensor) -> torch.Tensor:
    tokens = torch.full((len(logits),), -1, dtype=torch.int32, device=DEVICE)
    draw_rows(*(t.to(DEVICE) for t in (logits, *filters, uniform)), tokens)
    return tokens.cpu()


@pytest.mark.parametrize(
    ("spread", "dtype", "capacity"),
    [
        (0.01, torch.float32, 4096),  # more tokens qualify than can be gathered
        (2.0, torch.float32, 32768),
        (2.0, torch.bfloat16, 4096),
        (8.0, torch.float32, 32768),
    ],
)
def test_a_draw_is_that_of_torch(
    spread: float, dtype: torch.dtype, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_CAPACITY", capacity)
    rows, vocab = 12, 9000
    generator = torch.Generator().manual_seed(int(spread * 100))
    logits = (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)
    logits[:, 17] = float("-inf")
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1.0 - 2.0**-53
    filters = parameters(rows)
    assert (
        drawn(logits, uniform, *filters).tolist()
        == draw(logits.float(), *filters, uniform).tolist()
    )


def test_equals_of_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 3.0, -2.0, 0.0, 0.0]]).repeat(16, 1)
    uniform = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    ones = torch.ones(16)
    for top_k, top_p in ((2, 1.0), (0, 0.75), (3, 0.9)):
        filters = (ones, ones.long() * top_k, ones * top_p, ones * 0.0)
        tokens = drawn(logits, uniform, *filters)
        assert tokens.tolist() == draw(logits, *filters, uniform).tolist()
        assert set(tokens.tolist()) == {1, 2, 3, 4}


def test_rows_without_temperature_keep_their_token() -> None:
    logits = torch.zeros(2, 10)
    zeros = torch.zeros(2)
    heat = torch.tensor([0.0, 1.0])
    tokens = drawn(logits, torch.tensor([0.5, 0.55]).double(), heat, zeros.long(), zeros + 1, zeros)
    assert tokens.tolist() == [-1, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gets_a_token_of_the_vocabulary(value: float) -> None:
    logits = torch.full((4, 50), value)
    logits[:2, :49] = 0.0
    ones = torch.ones(4)
    filters = (ones, torch.tensor([0, 5, 0, 5]), ones * 0.9, ones * 0.1)
    tokens = drawn(logits, ones.double() * 0.999, *filters)
    assert 0 <= tokens.min() <= tokens.max() < 50
