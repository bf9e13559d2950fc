# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Two short sequences, served as a server would and computed by the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from slipstream.attention.interface import BatchLayout
from slipstream.attention.kv_cache import KvCache, KvShape
from slipstream.attention.paged_sdpa import PagedSdpa
from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback.bridge import OWN
from slipstream.models.fallback.decoder import FallbackDecoder

# Of the length of a row of logits. A mixed-up sequence is wrong by about the whole length; rounding
# in half precision, over many layers and once more for every expert chosen otherwise, by some
# hundredths.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}
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
    way. Raises CheckpointError if the two disagree: the model then looks at something that tokens
    of several sequences in one row do not have.
    """
    random = np.random.default_rng(0)
    ids = random.integers(decoder.spec.vocab_size // 4, decoder.spec.vocab_size, sum(_LENGTHS))
    rows = torch.from_numpy(ids).to(decoder.device).split(_LENGTHS)
    blocks = random.permutation(8).tolist()
    sequences = [_Sequence(tokens, [blocks.pop() for _ in range(3)]) for tokens in rows]
    served = _served(decoder, sequences)
    with decoder.bridge.using(OWN):
        own = [decoder.model(input_ids=tokens[None], use_cache=False).logits[0] for tokens in rows]
    pairs = [(s.float(), o.float()) for s, o in zip(served, own, strict=True)]
    error = max(float(((s - o).norm(dim=1) / o.norm(dim=1)).max()) for s, o in pairs)
    if not error <= _TOLERANCE[decoder.dtype]:
        raise CheckpointError(
            f"{decoder.spec.architecture}: tokens of several sequences in one row give other "
            f"logits than each sequence by itself (by {error:.2g} of their length; at most "
            f"{_TOLERANCE[decoder.dtype]:g} is rounding); it cannot be batched this way"
        )
    return error


def _served(decoder: FallbackDecoder, sequences: list[_Sequence]) -> list[torch.Tensor]:
    """Logits of every token: one ``[tokens, vocab]`` for each sequence."""
    spec = decoder.spec
    shape = KvShape(spec.num_layers, spec.num_kv_heads, _PER_BLOCK, spec.head_dim, decoder.dtype)
    attention = PagedSdpa(KvCache(shape, 8, decoder.device), spec.num_heads, spec.scores)
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for counts in _STEPS:
        first = [sequence.computed for sequence in sequences]
        batch = BatchLayout(
            np.array(counts), np.array(first), np.array([s.blocks for s in sequences], np.int32)
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
