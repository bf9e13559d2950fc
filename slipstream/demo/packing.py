# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows of training tokens: whole documents, packed first-fit, padded at the end of each row."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from slipstream.demo.corpus import documents

_DOCUMENTS_AT_ONCE = 64


def packed_rows(
    tokenizer: Tokenizer, seed: int | str, rows: int, length: int
) -> NDArray[np.uint16]:
    """Token ids `[rows, length]` of whole documents from `documents(seed)`, in random order.

    Documents longer than `length` tokens are left out. The rows depend on `seed` alone.
    """
    shuffle = random.Random(f"pack {seed}")
    bins = _first_fit(_enough_documents(tokenizer, seed, rows * length, length), rows, length)
    packed = np.full((rows, length), tokenizer.token_to_id("<pad>"), dtype=np.uint16)
    for row, members in enumerate(bins):
        shuffle.shuffle(members)
        ids = [token for member in members for token in member]
        packed[row, : len(ids)] = ids
    shuffle.shuffle(order := list(range(rows)))
    return packed[order]


def _enough_documents(
    tokenizer: Tokenizer, seed: int | str, tokens: int, length: int
) -> list[list[int]]:
    """Tokenized documents of at most `length` tokens each and at least `tokens` in all."""
    texts, kept, total = documents(seed), [], 0
    while total < tokens:
        batch = [next(texts) for _ in range(_DOCUMENTS_AT_ONCE)]
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            if len(encoding.ids) <= length:
                kept.append(encoding.ids)
                total += len(encoding.ids)
    return kept


def _first_fit(encoded: list[list[int]], rows: int, length: int) -> list[list[list[int]]]:
    """Longest documents first, each in the first row with room; what fits nowhere is dropped."""
    bins: list[list[list[int]]] = [[] for _ in range(rows)]
    room = [length] * rows
    first_open = 0
    for ids in sorted(encoded, key=len, reverse=True):
        for row in range(first_open, rows):
            if room[row] >= len(ids):
                bins[row].append(ids)
                room[row] -= len(ids)
                break
        while first_open < rows and room[first_open] < 8:
            first_open += 1
    return bins
