# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Exports what a tokenizer's tokens decode to, for the C++ detokenizer."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Sequence
from sys import byteorder
from typing import Any

import msgpack

from slipstream.tokenization.decoders import (
    DecoderPlan,
    TokenizationError,
    UnsupportedDecoderError,
    plan_decoder,
)

# TokenFlags of backend/executor/token_table.h.
_PRESENT, _SPECIAL, _ADDED, _BYTE = 1, 2, 4, 8

_MAX_TOKENS = 1 << 24
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class UnsupportedTokenizerError(TokenizationError):
    """A tokenizer whose decoding is not that of the ``tokenizers`` library."""


def export_token_table(tokenizer: Any) -> bytes:
    """The token table of ``tokenizer``, as the msgpack map that ``TokenTable::FromMsgpack`` reads.

    Detokenizing with it gives exactly ``tokenizer.decode(ids, skip_special_tokens=...)``.

    Args:
        tokenizer: a transformers tokenizer backed by ``tokenizers``, or a ``tokenizers.Tokenizer``.

    Raises:
        UnsupportedDecoderError: its decoder has a step that the C++ detokenizer does not do.
        UnsupportedTokenizerError: it is not backed by ``tokenizers``, or decodes in its own way.
    """
    backend = _backend(tokenizer)
    spec = json.loads(backend.to_str())
    tokens = _tokens(backend, spec)
    plan = plan_decoder(spec["decoder"])
    ids = range(max(tokens, default=-1) + 1)
    if len(ids) > _MAX_TOKENS:
        raise UnsupportedTokenizerError(f"token id {ids[-1]} is above {_MAX_TOKENS - 1}")
    to_bytes, is_byte = _ENCODERS[plan.joiner]

    flags = bytearray(len(ids))
    rest, first = [b""] * len(ids), [b""] * len(ids)
    for token_id, (content, token_flags) in tokens.items():
        later, leading = plan.resolve(content, False), plan.resolve(content, True)
        rest[token_id], first[token_id] = to_bytes(later), to_bytes(leading)
        flags[token_id] = token_flags | (_BYTE if is_byte(later) else 0)
        if is_byte(later) != is_byte(leading):
            raise UnsupportedDecoderError(
                "ByteFallback", f"token {content!r} is a byte only in some positions"
            )
    return _pack(plan, flags, rest, first, cleanup=_cleans_up(tokenizer, spec))


def _backend(tokenizer: Any) -> Any:
    """The ``tokenizers.Tokenizer`` behind ``tokenizer``; refuses one that decodes differently."""
    if hasattr(tokenizer, "to_str"):
        return tokenizer
    name = type(tokenizer).__name__
    if not hasattr(getattr(tokenizer, "backend_tokenizer", None), "to_str"):
        raise UnsupportedTokenizerError(f"{name} is not backed by the tokenizers library")
    from transformers import PreTrainedTokenizerFast

    for method in ("decode", "_decode", "clean_up_tokenization"):
        if getattr(type(tokenizer), method) is not getattr(PreTrainedTokenizerFast, method):
            raise UnsupportedTokenizerError(f"{name} decodes in its own way: it has {method}()")
    return tokenizer.backend_tokenizer


def _tokens(backend: Any, spec: dict[str, Any]) -> dict[int, tuple[str, int]]:
    """Token id -> (content, flags); added tokens take precedence over the model's."""
    vocab = spec["model"].get("vocab")
    if isinstance(vocab, dict):
        tokens = {int(token_id): content for content, token_id in vocab.items()}
    elif isinstance(vocab, list):  # unigram: [piece, score] by id
        tokens = {token_id: entry[0] for token_id, entry in enumerate(vocab)}
    else:
        raise UnsupportedTokenizerError(f"model {spec['model'].get('type')} has no vocabulary")
    # A decode shows an added token as the normalizer left it, so the content alone will not do;
    # and special tokens are skipped if what would be shown is the content of one.
    added = {int(token["id"]): backend.id_to_token(token["id"]) for token in spec["added_tokens"]}
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    return {
        token_id: (
            content,
            _PRESENT
            | (_SPECIAL if content in special else 0)
            | (_ADDED if token_id in added else 0),
        )
        for token_id, content in {**tokens, **added}.items()
    }


def _cleans_up(tokenizer: Any, spec: dict[str, Any]) -> bool:
    """Whether ``tokenizer.decode`` ends with clean_up_tokenization_spaces by default."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    # transformers 5 ignores the setting for BPE unless this attribute insists; 4 has no such rule.
    insists = getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True
    )
    return bool(insists) or spec["model"]["type"] != "BPE"


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """A token with any character outside the alphabet stands for its own UTF-8."""
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()


def _byte_fallback_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.encode()


def _never(_: str) -> bool:
    return False


# By joiner: token -> bytes, and token -> whether it stands for a single byte.
_ENCODERS: dict[str, tuple[Callable[[str], bytes], Callable[[str], bool]]] = {
    "concat": (str.encode, _never),
    "byte_level": (_byte_level_bytes, _never),
    "byte_fallback": (
        _byte_fallback_bytes,
        lambda token: _BYTE_TOKEN.fullmatch(token) is not None,
    ),
}


def _offsets(pieces: Sequence[bytes]) -> bytes:
    ends = array("I", [0])
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    if byteorder == "big":
        ends.byteswap()
    return ends.tobytes()


def _pack(
    plan: DecoderPlan,
    flags: bytearray,
    rest: Sequence[bytes],
    first: Sequence[bytes],
    *,
    cleanup: bool,
) -> bytes:
    table: dict[str, Any] = {
        "format": "slipstream.token_table",
        "version": 1,
        "joiner": plan.joiner,
        "count": len(flags),
        "flags": bytes(flags),
        "offsets": _offsets(rest),
        "data": b"".join(rest),
        "strip_content": plan.strip_content,
        "strip_count": plan.strip_count,
        "cleanup": cleanup,
    }
    if first != rest:
        table["first_offsets"] = _offsets(first)
        table["first_data"] = b"".join(first)
    blob: bytes = msgpack.packb(table)
    return blob
