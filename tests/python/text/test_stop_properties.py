# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The C++ stop matchers and word lists against their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream import _core

# Few letters, so that stops overlap; some of two to four bytes, so that they share bytes.
ALPHABET = "abc éè€😀😁"
texts = st.text(ALPHABET, max_size=30)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=5)


def reference(stops: list[str], include: bool, text: str) -> tuple[str, int | None]:
    """First match, then cut: the first end, of those the first begin, of those the first index."""
    for end in range(1, len(text) + 1):
        found = [(-len(s), i) for i, s in enumerate(stops) if text.endswith(s, 0, end)]
        if found:
            size, index = min(found)
            return text[: end if include else end + size], index
    return text, None


def run(stops: list[str], include: bool, pieces: list[str]) -> tuple[list[str], int | None]:
    """Chunks, the last from the flush; each is checked to be UTF-8 on its way here."""
    matcher = _core.StopMatcher(_core.StopStrings(stops, include))
    chunks: list[str] = []
    index = None
    for piece in pieces:
        chunk, match = matcher.feed(piece)
        chunks.append(chunk)
        index = match.index if match else index
    return [*chunks, matcher.flush()], index


def partitions(text: str, most: int) -> list[list[str]]:
    """All ways to cut ``text`` into at most ``most`` pieces."""
    cuts = [
        [0, *(i for i in range(1, len(text)) if bits >> (i - 1) & 1), len(text)]
        for bits in range(1 << (len(text) - 1))
        if bits.bit_count() < most
    ]
    return [[text[a:b] for a, b in pairwise(cut)] for cut in cuts]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("ABCDEFGHIJ", ["DEFGHIJ"]),
        ("xxSTOP now", ["STOP"]),
        ("ababababc", ["ababc", "babd"]),
        ("say 你好吗 😀!", ["好吗", "😁"]),
        ("ends in 😀", ["😀"]),
        ("near STO P", ["STOP"]),
        ("aaaaaab", ["aaab", "aab", "b"]),
        ("\n\nUser: x", ["\nUser:", "\n\nUser"]),
    ],
)
def test_every_partition_gives_the_same(text: str, stops: list[str], include: bool) -> None:
    expected = reference(stops, include, text)
    for pieces in partitions(text, 8):
        chunks, index = run(stops, include, pieces)
        assert ("".join(chunks), index) == expected


@settings(max_examples=2000, deadline=None)
@given(text=texts, stops=stop_lists, include=st.booleans(), data=st.data())
def test_first_match_then_cut(text: str, stops: list[str], include: bool, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    chunks, index = run(stops, include, pieces)
    assert ("".join(chunks), index) == reference(stops, include, text)


@settings(max_examples=500, deadline=None)
@given(text=texts, stops=stop_lists)
def test_text_is_held_exactly_while_it_may_match(text: str, stops: list[str]) -> None:
    matcher = _core.StopMatcher(_core.StopStrings(stops))
    out = ""
    for end in range(1, len(text) + 1):
        chunk, match = matcher.feed(text[end - 1])
        out += chunk
        if match:
            break
        prefixes = {stop[:n] for stop in stops for n in range(1, len(stop))}
        held = max((len(p) for p in prefixes if text.endswith(p, 0, end)), default=0)
        assert out == text[: end - held]


@settings(max_examples=500, deadline=None)
@given(text=texts, stops=stop_lists, data=st.data())
def test_characters_cut_by_the_caller_are_whole(text: str, stops: list[str], data: Any) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    matcher = _core.StopMatcher(_core.StopStrings(stops))
    out = "".join(matcher.feed(raw[a:b])[0] for a, b in pairwise([0, *cuts, len(raw)]))
    assert out + matcher.flush() == reference(stops, False, text)[0]


def test_match_positions_and_end() -> None:
    matcher = _core.StopMatcher(_core.StopStrings(["x", "€€"]))
    assert matcher.feed("é€") == ("é", None)
    assert matcher.held_bytes == 3
    text, match = matcher.feed("€tail")
    assert (text, match.index, match.begin, match.end) == ("", 1, 2, 8)
    assert matcher.stopped
    assert matcher.feed("x") == ("", None)
    assert matcher.flush() == ""


def test_bad_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^stop string 1 is empty$"):
        _core.StopStrings(["a", ""])
    with pytest.raises(ValueError, match=r"^stop string 0 is not valid UTF-8$"):
        _core.StopStrings([b"\x98"])


@settings(max_examples=500, deadline=None)
@given(
    history=st.lists(st.integers(0, 2), max_size=30),
    stops=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_token_sequences_match_at_the_end(history: list[int], stops: list[list[int]]) -> None:
    matcher = _core.TokenStopMatcher(_core.TokenStopSequences(stops))
    for end in range(1, len(history) + 1):
        found = [(-len(s), i) for i, s in enumerate(stops) if history[:end][-len(s) :] == s]
        expected = min(found)[1] if found else None
        assert matcher.feed(history[end - 1]) == expected


@given(
    words=st.lists(st.lists(st.integers(-1, 5), min_size=1, max_size=4), max_size=5),
    columns=st.integers(0, 12),
)
def test_word_lists_survive_the_wire(words: list[list[int]], columns: int) -> None:
    tensor = _core.encode_word_list(words, columns)
    assert tensor.dtype == np.int32
    assert tensor.shape == (2, max(columns, sum(map(len, words))))
    assert _core.parse_word_list("bad_words_list", tensor) == words


def test_word_list_errors_name_the_field() -> None:
    tensor = np.array([[1, 2], [2, 1]], dtype=np.int32)
    with pytest.raises(ValueError, match=r"^bad_words_list: non-increasing offsets: 1 at column 1"):
        _core.parse_word_list("bad_words_list", tensor)
