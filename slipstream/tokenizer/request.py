# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A REQUEST frame, checked: what the encoder gets cannot be malformed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Code = Literal["invalid_argument", "unsupported", "internal"]

_KEYS = ("id", "text", "messages", "chat", "add_special_tokens", "allow_special", "words")
_CHAT_KEYS = ("tools", "add_generation_prompt", "continue_final_message", "template_kwargs")
# Parameters of apply_chat_template: a template variable cannot have these names.
_RESERVED = frozenset(
    {
        "conversation", "messages", "tools", "documents", "chat_template", "tokenize", "padding",
        "add_generation_prompt", "continue_final_message", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
        "sanitize_control_tokens", "self",
    }
)  # fmt: skip


_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestError(Exception):
    """A request that cannot be served; the message names the field."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation and how the template is to render it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    template_kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """What to tokenize: a text or a chat, and words on the side."""

    text: str | None
    chat: Chat | None
    add_special_tokens: bool
    allow_special: bool
    words: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> TokenizeRequest:
        """Checks a REQUEST map. Raises RequestError."""
        _refuse_unknown(values, _KEYS, "")
        _check_utf8(values)
        text, messages = values.get("text"), values.get("messages")
        if (text is None) == (messages is None):
            raise _invalid("exactly one of text and messages must be given")
        if text is not None and not isinstance(text, str):
            raise _wrong("text", text, "a string")
        if text is not None and "chat" in values:
            raise _invalid("chat is given, but it applies to messages only")
        is_chat = messages is not None
        return cls(
            text=text,
            chat=_parse_chat(messages, values.get("chat")) if is_chat else None,
            add_special_tokens=_flag(values, "add_special_tokens", True),
            allow_special=_flag(values, "allow_special", not is_chat),
            words=_parse_words(values.get("words")),
        )


def _parse_chat(messages: Any, options: Any) -> Chat:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", messages, "a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}]", message, "a map")
        role = message.get("role")
        # Templates write roles between their markers: one with punctuation could forge a marker.
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise _wrong(f"messages[{index}].role", role, "1 to 64 letters, digits, '_' or '-'")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise _wrong("chat", options, "a map")
    _refuse_unknown(options, _CHAT_KEYS, "chat.")
    tools, variables = options.get("tools"), options.get("template_kwargs") or {}
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise _wrong("chat.tools", tools, "a list of maps")
    if not isinstance(variables, dict) or not all(isinstance(key, str) for key in variables):
        raise _wrong("chat.template_kwargs", variables, "a map with string keys")
    if reserved := sorted(_RESERVED.intersection(variables)):
        raise _invalid(f"chat.template_kwargs: {reserved[0]} is not a template variable")
    continues = _flag(options, "continue_final_message", False, "chat.")
    prompts = _flag(options, "add_generation_prompt", not continues, "chat.")
    if continues and prompts:
        raise _invalid(
            "chat.continue_final_message and chat.add_generation_prompt exclude each other"
        )
    return Chat(messages, tools, prompts, continues, variables)


def _parse_words(words: Any) -> dict[str, list[str]]:
    if words is None:
        return {}
    if not isinstance(words, dict):
        raise _wrong("words", words, "a map")
    for name, entries in words.items():
        if not isinstance(entries, list):
            raise _wrong(f"words.{name}", entries, "a list of strings")
        for index, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise _wrong(f"words.{name}[{index}]", entry, "a string")
    return words


def _flag(values: Mapping[str, Any], key: str, default: bool, prefix: str = "") -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(prefix + key, value, "true or false")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in values:
        if key not in known:
            raise _invalid(f"unknown field {prefix}{key}; the fields are {', '.join(known)}")


def _check_utf8(values: Mapping[str, Any]) -> None:
    for path, text in strings(values, ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _invalid(f"{path} is not valid UTF-8: see character {error.start}") from None


def strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a JSON-like value, keys included, and where it is; ``path`` leads there."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            name = f"{path}.{key}" if path else str(key)
            if isinstance(key, str):
                yield f"a key of {path or 'the request'}", key
            yield from strings(item, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, f"{path}[{index}]")


def _invalid(message: str) -> RequestError:
    return RequestError("invalid_argument", message)


def _wrong(name: str, value: Any, expected: str) -> RequestError:
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return _invalid(f"{name} is {shown}, expected {expected}")
