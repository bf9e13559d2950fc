# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Streamed text is the whole text, in order, whatever the characters."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_client import Reply, Stream, ask, generate, generate_stream, joined_text, question
from e2e_server import Server, decode, tokenizer

STRINGS = 200
PIECES = [
    "fox", " and ", "  two  spaces", "naïve", "Ünïcödé", "日本語", "漢字かな交じり文", "한국어",
    "العربية", "שלום", "हिन्दी", "ภาษาไทย", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷🇯🇵", "e\u0301\u0323", "Z͑ͫ̓a",
    "\u200bzero", "tab\tand\nline", "1234567890", "x = [i for i in y]", "“quotes”",
    "\u202eRTL", "€",
]  # fmt: skip


def heavy_strings() -> list[str]:
    """Random mixtures, the same in every run; none starts or ends with white space."""
    rng = random.Random(20)
    made: set[str] = set()
    while len(made) < STRINGS:
        parts = [rng.choice(PIECES) for _ in range(rng.randint(1, 6))]
        made.add("".join(parts).strip())
    return sorted(made)


both_ensembles = pytest.mark.parametrize("ensemble", ["ensemble", "steps"])


def over_grpc(server: Server, ensemble: str, text: str, count: int) -> list[str]:
    return [r.text() for r in ask(server.grpc, ensemble, question(text, count, stream=True))]


def over_http(server: Server, ensemble: str, text: str, count: int) -> list[str]:
    events = generate_stream(server.http, ensemble, question(text, count, stream=True))
    return [event["text_output"] for event in events]


@pytest.mark.parametrize(
    ("stream", "clients"), [(over_grpc, 8), (over_http, 4)], ids=["grpc", "http"]
)
@both_ensembles
def test_echoed_text(
    scripted: Server,
    ensemble: str,
    stream: Callable[[Server, str, str, int], list[str]],
    clients: int,
) -> None:
    texts = heavy_strings()

    def check(text: str) -> int:
        ids = tokenizer()(text)["input_ids"]
        expected = decode(ids)
        pieces = stream(scripted, ensemble, text, len(ids))
        assert "".join(pieces) == expected
        assert not any("\ufffd" in piece for piece in pieces)
        fields = question(text, len(ids), exclude_input_in_output=True)
        assert generate(scripted.http, ensemble, fields)[1]["text_output"] == expected
        return len(ids)

    with ThreadPoolExecutor(clients) as pool:
        counts = list(pool.map(check, texts))
    assert len(counts) == STRINGS
    assert sum(counts) > 5000  # most characters are several tokens


@both_ensembles
def test_streams_keep_their_order(scripted: Server, ensemble: str) -> None:
    """64 streams of 200 tokens each: no gap, no duplicate, nothing of a neighbour."""
    streams, count = 64, 200

    def text_of(index: int) -> str:
        return " ".join(str(10_000 + 100 * index + i) for i in range(40))

    def follow(index: int) -> list[Reply]:
        fields = question(text_of(index), count, stream=True, return_usage=True)
        with Stream(scripted.grpc) as stream:
            replies = stream.ask(ensemble, fields)
            assert stream.end() == []
        return replies

    with ThreadPoolExecutor(streams) as pool:
        everything = list(pool.map(follow, range(streams)))
    for index, replies in enumerate(everything):
        numbers = [reply.one("completion_tokens") for reply in replies if reply.outputs]
        assert numbers == sorted(set(numbers)), index
        assert numbers[-1] == count
        ids = tokenizer()(text_of(index))["input_ids"]
        assert joined_text(replies) == decode([ids[i % len(ids)] for i in range(count)])
