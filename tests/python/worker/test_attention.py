# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Paged attention equals attention written down plainly, for every mask, cap and sink."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slipstream.attention.interface import FULL, AttentionBackend, BatchLayout, Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache, KvShape, bits_of
from slipstream.attention.kv_scale import FP8, KvScale
from slipstream.attention.paged_rows import PagedRows
from slipstream.attention.paged_sdpa import PagedSdpa
from slipstream.attention.tiles import TILE
from slipstream.layers.rows import RowKernels

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 8, 4
E4M3_NAN = 0x7F
SCORES = {
    "full": ScoreSpec(0.4),
    "sliding": ScoreSpec(0.4, Mask("sliding", 7)),
    "sliding_one": ScoreSpec(0.4, Mask("sliding", 1)),
    "sliding_past_a_tile": ScoreSpec(0.4, Mask("sliding", TILE + 9)),
    "chunked": ScoreSpec(0.4, Mask("chunked", 12)),
    "chunked_within_blocks": ScoreSpec(0.4, Mask("chunked", 6)),
    "chunked_past_a_tile": ScoreSpec(0.4, Mask("chunked", TILE + 10)),
    "soft_cap": ScoreSpec(0.9, soft_cap=0.7),
    "soft_cap_sliding": ScoreSpec(0.9, Mask("sliding", 5), soft_cap=0.7),
    "soft_cap_chunked": ScoreSpec(0.9, Mask("chunked", 9), soft_cap=0.7),
}


def sees(mask: Mask, query: int, key: int) -> bool:
    if key > query:
        return False
    if mask.kind == "sliding":
        return query - key < mask.size
    return mask.kind == "full" or query // mask.size == key // mask.size


def plainly(qkv: torch.Tensor, scores: ScoreSpec, sinks: torch.Tensor | None) -> torch.Tensor:
    """``[tokens, heads, dim]`` of a whole sequence ``[tokens, heads + 2 kv_heads, dim]``."""
    qkv = qkv.double()
    group = HEADS // KV_HEADS
    queries = qkv[:, :HEADS]
    keys, values = (part.repeat_interleave(group, 1) for part in qkv[:, HEADS:].split(KV_HEADS, 1))
    logits = torch.einsum("qhd,khd->hqk", queries, keys) * scores.scale
    if scores.soft_cap is not None:
        logits = scores.soft_cap * torch.tanh(logits / scores.soft_cap)
    positions = range(len(qkv))
    visible = torch.tensor([[sees(scores.mask, q, k) for k in positions] for q in positions])
    weights = logits.exp() * visible
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp()[:, None, None]
    return torch.einsum("hqk,khd->qhd", weights / total, values)


def rounded(qkv: torch.Tensor, scale: KvScale) -> torch.Tensor:
    """The same queries, keys and values as an FP8 cache gives them back."""
    scales = torch.tensor([scale.key, scale.value]).repeat_interleave(KV_HEADS)[:, None]
    stored = (qkv[:, HEADS:] / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    return torch.cat((qkv[:, :HEADS].double(), stored.double() * scales.double()), 1)


class Sequences:
    """Random sequences whose tokens are computed step by step, several layers in lockstep."""

    def __init__(
        self,
        lengths: list[int],
        scores: list[ScoreSpec],
        seed: int,
        scales: list[KvScale] | None = None,
        rows: RowKernels | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        self.qkv = [torch.randn(length, HEADS + 2 * KV_HEADS, DIM) for length in lengths]
        self.out = [torch.empty(len(scores), length, HEADS, DIM) for length in lengths]
        self.done = [0] * len(lengths)
        self.scores = scores
        width = -(-max(lengths) // BLOCK)
        blocks = self.random.permutation(len(lengths) * width).astype(np.int32)
        self.table = blocks.reshape(len(lengths), width)
        self.scales = scales
        stored = torch.float32 if scales is None else FP8
        shape = KvShape(len(scores), KV_HEADS, BLOCK, DIM, stored)
        self.cache = KvCache(shape, blocks.size, torch.device("cpu"))
        bits_of(self.cache.pool).fill_(float("nan") if scales is None else E4M3_NAN)
        layers = [range(len(scores))]
        self.attention: AttentionBackend = (
            PagedSdpa([self.cache], layers, HEADS, scores, dtype=torch.float32, scales=scales)
            if rows is None
            else PagedRows(rows, [self.cache], layers, HEADS, scores)
        )

    def step(self, counts: dict[int, int], sinks: torch.Tensor | None) -> None:
        """Computes the next ``counts[i]`` tokens of sequences i."""
        taken = list(counts)
        first = np.array([self.done[i] for i in taken])
        plan = self.attention.plan(
            BatchLayout(np.array(list(counts.values())), first, self.table[None, taken])
        )
        parts = [self.qkv[i][self.done[i] : self.done[i] + n] for i, n in counts.items()]
        for layer in range(len(self.scores)):
            out = plan.run(layer, torch.cat(parts), sinks).view(-1, HEADS, DIM)
            for i, rows in zip(taken, out.split(list(counts.values())), strict=True):
                self.out[i][layer, self.done[i] : self.done[i] + len(rows)] = rows
        for i, n in counts.items():
            self.done[i] += n

    def check(self, sinks: torch.Tensor | None) -> None:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            for layer, scores in enumerate(self.scores):
                seen = qkv if self.scales is None else rounded(qkv, self.scales[layer])
                expected = plainly(seen, scores, sinks).float()
                torch.testing.assert_close(out[layer], expected, atol=2e-6, rtol=1e-5)


@pytest.fixture(params=[None, "avx512", "avx2", "generic"], ids=lambda name: name or "sdpa")
def rows(request: pytest.FixtureRequest) -> RowKernels | None:
    """PagedSdpa, and PagedRows on each set of instructions."""
    try:
        return None if request.param is None else RowKernels(2, request.param)
    except ValueError:
        pytest.skip("this processor has not the instructions")


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])], ids=["", "sinks"])
@pytest.mark.parametrize("name", SCORES)
def test_random_batches(name: str, sinks: torch.Tensor | None, rows: RowKernels | None) -> None:
    """Chunks and single tokens mixed, sequences of very different lengths."""
    batch = Sequences([1, 3, 20, 41, 90], [SCORES[name]], seed=len(name), rows=rows)
    while unfinished := [i for i, q in enumerate(batch.qkv) if batch.done[i] < len(q)]:
        batch.random.shuffle(unfinished)
        counts = {}
        for i in unfinished[: int(batch.random.integers(1, len(unfinished) + 1))]:
            left = len(batch.qkv[i]) - batch.done[i]
            single = batch.random.random() < 0.5
            counts[i] = 1 if single else int(batch.random.integers(1, min(left, 30) + 1))
        batch.step(counts, sinks)
    batch.check(sinks)


@pytest.mark.parametrize("name", SCORES)
def test_chunks_longer_than_a_tile(name: str, rows: RowKernels | None) -> None:
    batch = Sequences([2 * TILE + 60, TILE + 1], [SCORES[name]], seed=1, rows=rows)
    batch.step({0: 13, 1: TILE + 1}, None)
    batch.step({0: 2 * TILE + 40}, None)
    for _ in range(7):
        batch.step({0: 1}, None)
    batch.check(None)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])], ids=["", "sinks"])
def test_by_rows_no_cut_changes_a_bit(sinks: torch.Tensor | None, rows: RowKernels | None) -> None:
    """Whole prompts, chunks of any size and single tokens, in blocks that lie elsewhere."""
    if rows is None:
        pytest.skip("PagedSdpa does not promise that")
    lengths, scores = [1, 33, 90], list(SCORES.values())

    def outputs(seed: int, most: int) -> list[torch.Tensor]:
        batch = Sequences(lengths, scores, 5, rows=rows)
        batch.random = np.random.default_rng(seed)
        batch.table = batch.random.permutation(batch.table.flatten()).reshape(batch.table.shape)
        while unfinished := [i for i, q in enumerate(batch.qkv) if batch.done[i] < len(q)]:
            batch.random.shuffle(unfinished)
            left = {i: len(batch.qkv[i]) - batch.done[i] for i in unfinished}
            batch.step({i: min(most, count) for i, count in left.items()}, sinks)
        return batch.out

    whole = outputs(seed=0, most=1 << 30)
    for seed, most in enumerate((1, 16, 41)):
        assert all(map(torch.equal, outputs(seed, most), whole))


def test_layers_with_different_masks_share_a_plan() -> None:
    scores = [SCORES["sliding"], SCORES["full"], SCORES["soft_cap_chunked"], SCORES["sliding"]]
    batch = Sequences([37, 18], scores, seed=2)
    batch.step({1: 10, 0: 30}, None)
    for _ in range(7):
        batch.step({0: 1, 1: 1}, None)
    batch.step({1: 1}, None)
    batch.check(None)


def test_what_a_mask_hides_is_not_read(rows: RowKernels | None) -> None:
    """Blocks that no layer sees any more may hold anything, as they may belong to others."""
    batch = Sequences([40], [SCORES["sliding"]], seed=3, rows=rows)
    batch.step({0: 30}, None)
    gone = torch.from_numpy(batch.table[0, : (31 - 7) // BLOCK].astype(np.int64))
    batch.cache.pool[:, gone] = float("nan")
    for _ in range(4):
        batch.step({0: 1}, None)
    batch.step({0: 6}, None)
    batch.check(None)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])], ids=["", "sinks"])
def test_an_fp8_cache_rounds_keys_and_values_and_nothing_else(sinks: torch.Tensor | None) -> None:
    """However a sequence is cut into steps: no token sees another one's unrounded."""
    names = ("full", "sliding", "soft_cap_chunked")
    # Of the last, everything above 0.9 is saturated.
    scales = [KvScale(1.0, 1.0), KvScale(0.013, 1.7), KvScale(0.002, 0.002)]
    for chunk in (1, 7, 64):
        batch = Sequences([40, 11], [SCORES[name] for name in names], seed=4, scales=scales)
        while unfinished := [i for i, q in enumerate(batch.qkv) if batch.done[i] < len(q)]:
            left = {i: len(batch.qkv[i]) - batch.done[i] for i in unfinished}
            batch.step({i: min(chunk, count) for i, count in left.items()}, sinks)
        batch.check(sinks)
    assert batch.cache.pool.dtype == torch.float8_e4m3fn
    assert (batch.cache.pool[2].float().abs() == 448).sum() > 50


def test_first_visible_positions() -> None:
    positions = np.array([0, 5, 6, 7, 20])
    assert FULL.first_visible(positions).tolist() == [0, 0, 0, 0, 0]
    assert Mask("sliding", 6).first_visible(positions).tolist() == [0, 0, 1, 2, 15]
    assert Mask("chunked", 6).first_visible(positions).tolist() == [0, 0, 6, 6, 18]
