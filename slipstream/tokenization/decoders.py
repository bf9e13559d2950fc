# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoders of the ``tokenizers`` library, resolved into what one token contributes to a text.

A decoder is a chain of steps over a list of tokens. Most steps look at one token at a time (some
treat the first token differently); what they do is known in advance, for every token. One step
joins tokens into text, and steps after it work on the text. A :class:`DecoderPlan` is a chain
sorted into these parts; a chain that does not fit raises :class:`UnsupportedDecoderError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Joiner = Literal["concat", "byte_level", "byte_fallback"]
Step = Callable[[str, bool], str]  # (token, is it the first of the text) -> token

# The clean-up of the WordPiece decoder: per token, in this order.
_WORDPIECE_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class TokenizationError(ValueError):
    """A tokenizer that cannot be served.

    TokenizationError
    ├── UnsupportedDecoderError     its decoder does something that the C++ detokenizer does not
    └── UnsupportedTokenizerError   it is not backed by the ``tokenizers`` library as it stands
    """


class UnsupportedDecoderError(TokenizationError):
    """A decoder step that cannot be reproduced; the message names it."""

    def __init__(self, decoder: str, why: str) -> None:
        super().__init__(f"decoder {decoder}: {why}")
        self.decoder = decoder


@dataclass
class DecoderPlan:
    """A decoder chain, sorted: steps per token, how tokens join, what happens to the text."""

    steps: list[Step] = field(default_factory=list)
    joiner: Joiner = "concat"
    strip_content: str = ""  # this character is dropped where the text begins,
    strip_count: int = 0  # up to so many times

    def resolve(self, token: str, first: bool) -> str:
        """What the per-token steps make of ``token``."""
        for step in self.steps:
            token = step(token, first)
        return token


def plan_decoder(decoder: dict[str, Any] | None) -> DecoderPlan:
    """Sorts the serialized ``decoder`` of a tokenizer (None: tokens joined by spaces).

    Raises:
        UnsupportedDecoderError: for a step, an option or an order that cannot be reproduced.
    """
    plan = DecoderPlan()
    if decoder is None:
        plan.steps.append(lambda token, first: token if first else " " + token)
        return plan
    fused = False
    for step in _flatten(decoder):
        kind = str(step.get("type"))
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel" and not fused and plan.joiner == "concat":
            plan.joiner, fused = "byte_level", True
        elif kind == "ByteFallback" and not fused and plan.joiner == "concat":
            plan.joiner = "byte_fallback"
        elif kind == "Strip" and fused and plan.strip_count == 0:
            plan.strip_content, plan.strip_count = _strip_options(step)
        elif kind not in _TOKEN_STEPS and kind not in _JOINING_STEPS:
            known = ", ".join([*_TOKEN_STEPS, *_JOINING_STEPS])
            raise UnsupportedDecoderError(kind, f"unknown; supported are {known}")
        elif fused or plan.joiner != "concat":
            raise UnsupportedDecoderError(kind, "not supported after the tokens are joined")
        else:
            plan.steps.append(_TOKEN_STEPS[kind](step))
    return plan


def _flatten(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flatten(step)


def _replace(step: dict[str, Any]) -> Step:
    pattern = step["pattern"].get("String")
    if not pattern:
        raise UnsupportedDecoderError(
            "Replace", f"pattern {step['pattern']!r} is not a non-empty plain string"
        )
    content = str(step["content"])
    return lambda token, first: token.replace(pattern, content)


def _metaspace(step: dict[str, Any]) -> Step:
    replacement = str(step["replacement"])
    drop_in_first = step["prepend_scheme"] != "never"
    return lambda token, first: token.replace(replacement, "" if first and drop_in_first else " ")


def _wordpiece(step: dict[str, Any]) -> Step:
    prefix, cleanup = str(step["prefix"]), bool(step["cleanup"])

    def apply(token: str, first: bool) -> str:
        if not first:
            token = token[len(prefix) :] if token.startswith(prefix) else " " + token
        if cleanup:
            for pattern, content in _WORDPIECE_CLEANUP:
                token = token.replace(pattern, content)
        return token

    return apply


def _strip_options(step: dict[str, Any]) -> tuple[str, int]:
    if step["stop"] != 0:
        raise UnsupportedDecoderError("Strip", f"stop is {step['stop']}, only 0 is supported")
    return str(step["content"]), int(step["start"])


def _strip(step: dict[str, Any]) -> Step:
    content, start = _strip_options(step)

    def apply(token: str, first: bool) -> str:
        cut = 0
        while cut < min(start, len(token)) and token[cut] == content:
            cut += 1
        return token[cut:]

    return apply


_JOINING_STEPS = ("ByteFallback", "ByteLevel", "Fuse")
_TOKEN_STEPS: dict[str, Callable[[dict[str, Any]], Step]] = {
    "Replace": _replace,
    "Metaspace": _metaspace,
    "WordPiece": _wordpiece,
    "Strip": _strip,
}
