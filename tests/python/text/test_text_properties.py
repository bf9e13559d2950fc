# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The C++ detokenizer against transformers' own decode, on six kinds of tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import KINDS, build, cut_anywhere, generate_text, sentencepiece_bpe, unigram
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from slipstream import _core
from slipstream.tokenization import (
    TokenizationError,
    UnsupportedDecoderError,
    UnsupportedTokenizerError,
    export_token_table,
)

STRINGS = 2000
CHUNK_SIZES = (1, 2, 3, 8, 0)  # 0 = random sizes


@cache
def table(kind: str) -> _core.TokenTable:
    return _core.TokenTable.from_msgpack(export_token_table(build(kind)))


def encode(kind: str, text: str, rng: random.Random) -> list[int]:
    tokenizer = build(kind)
    if kind == "prefix_unstable":
        return cut_anywhere(tokenizer, text, rng)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def random_ids(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[int]:
    """Ids that no text encodes to: bytes at random, special tokens, ids without a token."""
    ids = [rng.randrange(len(tokenizer) + 3) for _ in range(rng.randrange(20))]
    if rng.random() < 0.5:  # dense in bytes: random text cut into its UTF-8, then disturbed
        vocab = tokenizer.get_vocab()
        spelled = [f"<0x{byte:02X}>" for byte in generate_text(rng).encode()]
        ids += [vocab[piece] for piece in spelled if piece in vocab]
    for _ in range(min(3, len(ids))):
        ids[rng.randrange(len(ids))] = rng.randrange(len(tokenizer))
    return ids


def chunks_of(ids: list[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    at = 0
    while at < len(ids):
        step = size or rng.randint(1, 9)
        yield ids[at : at + step]
        at += step


def stream(tokens: Any, skip: bool, chunks: Iterator[list[int]]) -> list[str]:
    """The chunks of text, then what the flush gives; checked to be UTF-8 on the way."""
    detokenizer = _core.Detokenizer(tokens, skip)
    return [*(detokenizer.extend(chunk) for chunk in chunks), detokenizer.flush()]


def check(tokenizer: Any, tokens: Any, ids: list[int], rng: random.Random) -> None:
    for skip in (True, False):
        expected = tokenizer.decode(ids, skip_special_tokens=skip)
        assert _core.Detokenizer.decode(tokens, ids, skip) == expected
        for size in CHUNK_SIZES:
            assert "".join(stream(tokens, skip, chunks_of(ids, size, rng))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_the_decoded_text(kind: str) -> None:
    rng = random.Random(f"text {kind}")
    for _ in range(STRINGS):
        check(build(kind), table(kind), encode(kind, generate_text(rng), rng), rng)


@pytest.mark.parametrize("kind", KINDS)
def test_random_ids_decode_as_in_transformers(kind: str) -> None:
    rng = random.Random(f"ids {kind}")
    for _ in range(STRINGS):
        check(build(kind), table(kind), random_ids(build(kind), rng), rng)


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    chunks=st.lists(st.lists(st.integers(-3, 1300), max_size=6), max_size=12),
    skip=st.booleans(),
)
def test_any_ids_in_any_chunks(kind: str, chunks: list[list[int]], skip: bool) -> None:
    ids = [token for chunk in chunks for token in chunk if token >= 0]  # transformers refuses < 0
    expected = build(kind).decode(ids, skip_special_tokens=skip)
    assert "".join(stream(table(kind), skip, iter(chunks))) == expected


@pytest.mark.parametrize("kind", ["byte_level_bpe", "tiktoken_style"])
def test_byte_level_text_is_never_late(kind: str) -> None:
    """After every token all text is out, save the beginning of one unfinished character."""
    rng = random.Random(kind)
    for _ in range(100):
        ids = encode(kind, generate_text(rng), rng) + random_ids(build(kind), rng)
        detokenizer, text = _core.Detokenizer(table(kind), False), ""
        for end in range(1, len(ids) + 1):
            text += detokenizer.append(ids[end - 1])
            so_far = build(kind).decode(ids[:end])
            assert so_far in (text, text + "\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_ids_give_nothing(kind: str) -> None:
    ids = [-(2**31), -1, 2**31 - 1, len(build(kind)), 1 << 24]
    assert _core.Detokenizer.decode(table(kind), ids) == ""


VARIANTS = {
    "gemma": lambda: sentencepiece_bpe(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "metaspace before byte fallback": lambda: sentencepiece_bpe(
        decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback(), decoders.Fuse()]
        )
    ),
    "byte fallback cleaned up": lambda: sentencepiece_bpe(cleanup=True),
    "strips up to three": lambda: sentencepiece_bpe(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 3, 0)]
        )
    ),
    "metaspace first": lambda: unigram(decoders.Metaspace(prepend_scheme="first")),
    "metaspace never": lambda: unigram(decoders.Metaspace(prepend_scheme="never")),
    "metaspace cleaned up": lambda: unigram(cleanup=True),
    "strip per token": lambda: unigram(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 2, 0)])
    ),
    "nested": lambda: unigram(
        decoders.Sequence([decoders.Sequence([decoders.Metaspace()]), decoders.Fuse()])
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_decoders(variant: str) -> None:
    tokenizer, rng = VARIANTS[variant](), random.Random(variant)
    tokens = _core.TokenTable.from_msgpack(export_token_table(tokenizer))
    for _ in range(150):
        check(tokenizer, tokens, tokenizer(generate_text(rng))["input_ids"], rng)
        check(tokenizer, tokens, random_ids(tokenizer, rng), rng)


def test_without_a_decoder_tokens_are_joined_by_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a"))
    tokens = _core.TokenTable.from_msgpack(export_token_table(tokenizer))
    assert stream(tokens, True, iter([[0], [1], [2], [0]])) == ["a", "", " b", " a", ""]
    assert tokenizer.decode([0, 1, 2, 0]) == "a b a"


def first_differs_and_bytes(*more: str) -> Tokenizer:
    pieces = ["▁a", "b", "▁", "<0xC3>", "<0xA9>", *more]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="b"))
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    return tokenizer


def test_a_first_piece_with_byte_fallback() -> None:
    tokenizer, rng = first_differs_and_bytes(), random.Random(5)
    tokens = _core.TokenTable.from_msgpack(export_token_table(tokenizer))
    for _ in range(300):
        check(tokenizer, tokens, [rng.randrange(5) for _ in range(rng.randrange(8))], rng)
    with pytest.raises(UnsupportedDecoderError, match=r"token '▁<0x41>' is a byte only in some"):
        export_token_table(first_differs_and_bytes("▁<0x41>"))


def test_added_tokens_are_shown_as_normalized() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "B": 1}, unk_token="a"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("B", normalized=True), AddedToken("X", normalized=True)])
    tokenizer.add_special_tokens([AddedToken("S", normalized=True), AddedToken("T")])
    tokens = _core.TokenTable.from_msgpack(export_token_table(tokenizer))
    for skip in (True, False):
        for ids in ([0, 1, 2], [3], [4], [4, 3, 0]):
            expected = tokenizer.decode(ids, skip_special_tokens=skip)
            assert _core.Detokenizer.decode(tokens, ids, skip) == expected


def test_a_byte_run_waits_for_its_end() -> None:
    tokenizer, tokens = build("sentencepiece_bpe"), table("sentencepiece_bpe")
    vocab = tokenizer.get_vocab()
    ids = [vocab[f"<0x{byte:02X}>"] for byte in "é👍".encode()]
    assert "".join(stream(tokens, True, iter([ids]))[:-1]) == ""
    assert stream(tokens, True, iter([ids, [vocab["."]]])) == ["", "é👍.", ""]
    assert stream(tokens, True, iter([ids, [ids[1]]])) == ["", "\ufffd" * 7, ""]


def with_decoder(decoder: dict[str, Any]) -> Tokenizer:
    spec = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    return Tokenizer.from_str(json.dumps({**spec, "decoder": decoder}))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"type": "BPEDecoder", "suffix": "</w>"}, "decoder BPEDecoder: unknown; supported are "),
        (
            {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
            "decoder Replace: pattern {'Regex': 'a+'} is not a non-empty plain string",
        ),
        (
            {"type": "Strip", "content": " ", "start": 0, "stop": 2},
            "decoder Strip: stop is 2, only 0 is supported",
        ),
        (
            {
                "type": "Sequence",
                "decoders": [
                    {"type": "Fuse"},
                    {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
                ],
            },
            "decoder Replace: not supported after the tokens are joined",
        ),
    ],
)
def test_unsupported_decoders_are_named(decoder: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedDecoderError) as raised:
        export_token_table(with_decoder(decoder))
    assert str(raised.value).startswith(message)
    assert raised.value.decoder == decoder["type"] or decoder["type"] == "Sequence"


def test_unsupported_tokenizers_are_named() -> None:
    class OwnDecode(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return "mine"

    own = OwnDecode(tokenizer_object=build("unigram").backend_tokenizer)
    with pytest.raises(UnsupportedTokenizerError, match=r"^OwnDecode decodes in its own way"):
        export_token_table(own)
    with pytest.raises(TokenizationError, match=r"^object is not backed by the tokenizers library"):
        export_token_table(object())


def test_a_malformed_table_is_a_value_error() -> None:
    blob = msgpack.unpackb(export_token_table(build("unigram")))
    with pytest.raises(ValueError, match=r"flags has 1 bytes, count is "):
        _core.TokenTable.from_msgpack(msgpack.packb({**blob, "flags": b"\x01"}))
