# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Latent attention by rows: what it means, and that no cut of a prompt changes a bit of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slipstream.attention.interface import BatchLayout, ScoreSpec
from slipstream.attention.kv_cache import KvCache, KvShape
from slipstream.attention.paged_rows import PagedRows
from slipstream.layers.rows import RowKernels

HEADS, BLOCK = 5, 4
LENGTHS = [1, 33, 50]
# Whole vectors at once and what is left of them, in keys and values.
SIZES = [(28, 20), (80, 68), (208, 192)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def latents(dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of each sequence queries and keys, ``[tokens, heads + 1, dim]``."""
    generator = torch.Generator().manual_seed(dim)
    return [torch.randn(n, HEADS + 1, dim, generator=generator).to(dtype) for n in LENGTHS]


def attended(
    kernels: RowKernels, folded: list[torch.Tensor], value_dim: int, most: int, seed: int
) -> list[torch.Tensor]:
    """``[tokens, heads * value_dim]`` of each, in chunks of up to ``most`` tokens, sequences in a
    random order and in random blocks of a cache that holds no numbers."""
    random = np.random.default_rng(seed)
    dim, dtype = folded[0].shape[-1], folded[0].dtype
    width = -(-max(LENGTHS) // BLOCK)
    table = random.permutation(len(LENGTHS) * width).astype(np.int32).reshape(-1, width)
    cache = KvCache(KvShape(1, 1, BLOCK, dim, dtype, value_dim), table.size, torch.device("cpu"))
    cache.pool.fill_(float("nan"))
    backend = PagedRows(kernels, [cache], [[0]], HEADS, [ScoreSpec(0.1)])
    done = [0] * len(LENGTHS)
    parts: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
    while unfinished := [i for i, n in enumerate(LENGTHS) if done[i] < n]:
        random.shuffle(unfinished)
        counts = [min(most, LENGTHS[i] - done[i]) for i in unfinished]
        first = np.array([done[i] for i in unfinished])
        plan = backend.plan(BatchLayout(np.array(counts), first, table[None, unfinished]))
        rows = [folded[i][done[i] : done[i] + n] for i, n in zip(unfinished, counts, strict=True)]
        out = plan.run(0, torch.cat(rows))
        for i, part in zip(unfinished, out.split(counts), strict=True):
            parts[i].append(part)
            done[i] += len(part)
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("dim", "value_dim"), SIZES)
def test_latent_attention(
    kernels: RowKernels, dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    folded = latents(dim, dtype)
    whole = attended(kernels, folded, value_dim, 1 << 30, seed=0)
    for rows, out in zip(folded, whole, strict=True):
        queries, keys = rows[:, :-1].double(), rows[:, -1].double()
        scores = torch.einsum("qhd,kd->hqk", queries, keys) * 0.1
        hidden = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        exact = torch.einsum("hqk,kd->qhd", weights, keys[:, :value_dim]).flatten(1)
        torch.testing.assert_close(out.double(), exact, atol=4e-6, rtol=TOLERANCE[dtype])
    for seed, most in enumerate((1, 7, 16)):
        again = attended(kernels, folded, value_dim, most, seed)
        assert all(map(torch.equal, again, whole))
