# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Two short sequences, served as a server would and computed by the model itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from slipstream.attention.interface import BatchLayout
from slipstream.attention.kv_cache import KvCache, KvShape
from slipstream.attention.paged_sdpa import PagedSdpa
from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback.bridge import OWN
from slipstream.models.fallback.decoder import FallbackDecoder
from slipstream.models.fallback.widened import widened

# Of the length of a row of logits, in float32. Rounding makes millionths, a sequence that is mixed
# up is wrong by about the whole length.
_TOLERANCE = 1e-3
_LENGTHS = (9, 6)
_PER_BLOCK = 4
# Tokens of either sequence in each step; one begins while the other goes on.
_STEPS = ((4, 1), (4, 2), (1, 3))


@dataclass(slots=True)
class _Sequence:
    tokens: torch.Tensor
    blocks: list[int]
    computed: int = 0


@torch.inference_mode()
def self_test(decoder: FallbackDecoder) -> float:
    """Returns the largest error of a row of logits, relative to its length.

    It takes three paged forwards and two of the model with its own attention, of 15 tokens each
    way, in float32: in half precision the choice of an expert can turn on a rounding, and change
    everything. Raises CheckpointError if the two disagree: the model then looks at something that
    tokens of several sequences in one row do not have.
    """
    exact = copy.copy(decoder)
    exact.dtype = torch.float32
    random = np.random.default_rng(0)
    ids = random.integers(decoder.spec.vocab_size // 4, decoder.spec.vocab_size, sum(_LENGTHS))
    rows = torch.from_numpy(ids).to(decoder.device).split(_LENGTHS)
    blocks = random.permutation(8).tolist()
    sequences = [_Sequence(tokens, [blocks.pop() for _ in range(3)]) for tokens in rows]
    with widened(decoder.model):
        served = torch.cat(_served(exact, sequences))
        with decoder.bridge.using(OWN):
            own = torch.cat(
                [decoder.model(input_ids=r[None], use_cache=False).logits[0].float() for r in rows]
            )
    error = float(((served - own).norm(dim=1) / own.norm(dim=1)).max())
    if not error <= _TOLERANCE:
        raise CheckpointError(
            f"{decoder.spec.architecture}: tokens of several sequences in one row give other "
            f"logits than each sequence by itself (by {error:.2g} of their length; up to "
            f"{_TOLERANCE:g} is rounding); it cannot be batched this way"
        )
    return error


def _served(decoder: FallbackDecoder, sequences: list[_Sequence]) -> list[torch.Tensor]:
    """Logits of every token: one ``[tokens, vocab]`` for each sequence."""
    spec = decoder.spec
    shape = KvShape(spec.num_layers, spec.num_kv_heads, _PER_BLOCK, spec.head_dim, decoder.dtype)
    cache, layers = KvCache(shape, 8, decoder.device), range(spec.num_layers)
    attention = PagedSdpa([cache], [layers], spec.num_heads, spec.scores)
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for counts in _STEPS:
        first = [sequence.computed for sequence in sequences]
        batch = BatchLayout(
            np.array(counts), np.array(first), np.array([[s.blocks for s in sequences]], np.int32)
        )
        pieces = list(zip(sequences, counts, strict=True))
        tokens = [s.tokens[s.computed : s.computed + count] for s, count in pieces]
        positions = np.concatenate([s.computed + np.arange(count) for s, count in pieces])
        hidden = decoder(
            torch.cat(tokens),
            torch.from_numpy(positions).to(decoder.device),
            attention.plan(batch),
        )
        for kept, part in zip(logits, decoder.logits(hidden).split(list(counts)), strict=True):
            kept.append(part)
        for sequence, count in pieces:
            sequence.computed += count
    return [torch.cat(parts) for parts in logits]
