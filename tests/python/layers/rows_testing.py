# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of layers by rows ask of every kernel."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

EXACT = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # relative, of a rounded result


def rows_of(count: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator).to(dtype)


def assert_rows_are_their_own(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> None:
    """Alone, in another order and in a slice that begins elsewhere in memory."""
    whole = function(x.clone())
    order = list(range(len(x)))
    random.Random(1).shuffle(order)
    assert torch.equal(function(x[order]), whole[order])
    for row in order[:9]:
        assert torch.equal(function(x[row : row + 1].clone())[0], whole[row])
    assert torch.equal(function(x[3:-2].clone()), whole[3:-2])
