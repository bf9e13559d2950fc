# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Keeps text that spells a special token from becoming one."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from slipstream.tokenizer.request import RequestError, strings

# Noncharacters: Unicode reserves them for use inside programs.
_BREAK = "\ufdee"  # stands between the first two characters of a spelled special token
_ESCAPED_BREAK = r"\ufdee"  # what tojson(ensure_ascii=True) makes of it
_FENCE = "\ufdef"  # around the number in the alias of a special token


class InertText:
    """Encodes text in which only some spellings of special tokens count.

    Works with a twin of the tokenizer in which every special token is spelled by an alias that no
    text contains: what is spelled in the ordinary way is ordinary text to the twin. In all other
    text the twin gives exactly the tokenizer's ids, because it differs in nothing else.

    For chats, the caller marks its inputs (`mark`), lets the template write its own special
    tokens around them, and encodes the result (`encode_marked`).

    Args:
        backend: the ``tokenizers.Tokenizer``, or None when the tokenizer has none: then texts that
            spell a special token are refused.
        specials: the spellings of the special tokens.
    """

    def __init__(self, backend: Tokenizer | None, specials: list[str]) -> None:
        self._backend = backend
        self._twin: Tokenizer | None = None
        self._aliases: dict[str, str] = {}  # the twin's spelling of each special token
        self._pattern: re.Pattern[str] | None = None
        self._prefixes: set[str] = set()
        if specials := sorted(filter(None, specials), key=len, reverse=True):
            self._pattern = re.compile("|".join(map(re.escape, specials)))
            self._prefixes = {s[:n] for s in specials for n in range(1, len(s))}
        self._longest = len(specials[0]) if specials else 0
        self._normalize = None
        if backend is not None and backend.normalizer is not None:
            added = backend.get_added_tokens_decoder().values()
            if any(token.special and token.normalized for token in added):
                self._normalize = backend.normalizer.normalize_str

    def spells_special(self, text: str) -> bool:
        if self._pattern is None:
            return False
        if self._pattern.search(text):
            return True
        return self._normalize is not None and bool(self._pattern.search(self._normalize(text)))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of `text` with none of its spellings counting. Raises RequestError."""
        if _FENCE in text:
            raise _reserved("text")
        return list(self._get_twin().encode(text, add_special_tokens=add_special_tokens).ids)

    def mark(self, value: Any, path: str) -> tuple[Any, bool]:
        """A copy of a JSON-like value with every spelling in it broken, and whether any was.

        Breaks the beginning of a spelling at the end of a string too: what follows it could
        complete it. Raises RequestError naming the string that cannot be marked. If anything was,
        ask `refuse_marks` about all of them.
        """
        if isinstance(value, str):
            return self._mark_text(value, path)
        if isinstance(value, dict):
            keys = [self.mark(key, f"a key of {path}") for key in value]
            items = [self.mark(item, f"{path}.{key}") for key, item in value.items()]
            changed = any(was for _, was in keys + items)
            return {k: v for (k, _), (v, _) in zip(keys, items, strict=True)}, changed
        if isinstance(value, list):
            entries = [self.mark(item, f"{path}[{index}]") for index, item in enumerate(value)]
            return [entry for entry, _ in entries], any(was for _, was in entries)
        return value, False

    def refuse_marks(self, value: Any, path: str) -> None:
        """Raises RequestError if a string of the caller's holds marks: they would count as ours.

        Any string of a chat of which another is marked must be looked at, since all are encoded
        together.
        """
        for name, text in strings(value, path):
            if any(mark in text for mark in (_BREAK, _ESCAPED_BREAK, _FENCE)):
                raise _reserved(name)

    def encode_marked(self, text: str) -> list[int]:
        """The ids of a rendered template: its own special tokens count, marked ones do not."""
        twin = self._get_twin()
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: self._aliases[match[0]], text)
        text = text.replace(_BREAK, "").replace(_ESCAPED_BREAK, "")
        return list(twin.encode(text, add_special_tokens=False).ids)

    def _mark_text(self, text: str, path: str) -> tuple[str, bool]:
        if self._pattern is None:
            return text, False
        marked = text
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if tail in self._prefixes and not tail.isspace():
                at = start + 1 + len(marked) - len(text)
                marked = marked[:at] + _BREAK + marked[at:]
        while match := self._pattern.search(marked):
            if len(match[0]) == 1:
                raise RequestError(
                    "unsupported", f"{path} contains the special token {match[0]!r}, one character"
                )
            marked = self._pattern.sub(lambda m: m[0][0] + _BREAK + m[0][1:], marked)
        return marked, marked != text or self.spells_special(text)

    def _get_twin(self) -> Tokenizer:
        if self._twin is None:
            if self._backend is None:
                raise RequestError(
                    "unsupported",
                    "text spells a special token, which this tokenizer cannot encode as ordinary "
                    "text: it is not backed by the tokenizers library",
                )
            self._aliases, self._twin = _make_twin(self._backend)
        return self._twin


def _make_twin(backend: Tokenizer) -> tuple[dict[str, str], Tokenizer]:
    """The aliases by spelling, and the tokenizer that knows only them."""
    spec = json.loads(backend.to_str())
    spec["truncation"] = spec["padding"] = None
    aliases: dict[str, str] = {}
    for token in spec["added_tokens"]:
        if token["special"]:
            aliases[token["content"]] = f"{_FENCE}{token['id']}{_FENCE}"
            token["content"] = aliases[token["content"]]
    model = spec["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {aliases.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    try:
        twin = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises plain Exception
        raise RequestError(
            "unsupported", f"this tokenizer cannot encode special tokens as ordinary text: {error}"
        ) from error
    for content, alias in aliases.items():
        token_id = backend.token_to_id(content)
        if token_id not in twin.encode(alias, add_special_tokens=False).ids:
            raise RequestError(
                "unsupported", f"this tokenizer cannot encode {content!r} as ordinary text"
            )
    return aliases, twin


def _reserved(path: str) -> RequestError:
    return RequestError(
        "invalid_argument",
        f"{path} contains the noncharacter U+FDEE or U+FDEF in a request that spells a special "
        "token",
    )
