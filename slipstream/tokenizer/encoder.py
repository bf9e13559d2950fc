# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Prompts to token ids, equal to what transformers makes of them."""

from __future__ import annotations

import re
from typing import Any

from slipstream.tokenizer.inert import InertText
from slipstream.tokenizer.request import Chat, RequestError, TokenizeRequest

# Templates build tokens from roles, such as <|user|>: these have a right to one.
_ROLES = frozenset(
    {
        "system", "developer", "user", "assistant", "model", "tool", "function", "ipython",
        "observation", "environment",
    }
)  # fmt: skip
_AROUND_NAMES = re.compile(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$")


class PromptEncoder:
    """Encodes prompts with a transformers tokenizer.

    Texts give the ids of ``tokenizer(text)``, chats those of ``apply_chat_template(...,
    tokenize=True)``, with two exceptions where special tokens are not allowed: text that spells
    one is encoded as ordinary text, and a role named as one (``im_end``) is refused, because
    templates write roles between markers. In chats, what the template writes stays special. Added
    tokens that are not special (``<think>``) are tokens wherever they are spelled, as they are in
    transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        backend = backend if hasattr(backend, "to_str") else None
        specials = set(tokenizer.all_special_tokens)
        if backend is not None:
            added = backend.get_added_tokens_decoder().values()
            specials = {token.content for token in added if token.special}
        self._inert = InertText(backend, sorted(specials))
        self._names = {_AROUND_NAMES.sub("", special): special for special in sorted(specials)}

    def encode(self, request: TokenizeRequest) -> list[int]:
        """The prompt's ids. Raises RequestError naming the field."""
        if request.chat is not None:
            return self._encode_chat(request.chat, allow_special=request.allow_special)
        assert request.text is not None
        if not request.allow_special and self._inert.spells_special(request.text):
            return self._inert.encode(request.text, add_special_tokens=request.add_special_tokens)
        return self._plain(request.text, add_special_tokens=request.add_special_tokens)

    def encode_word(self, word: str) -> list[int]:
        """The ids of a word alone; none for the empty word."""
        return self._plain(word, add_special_tokens=False) if word else []

    def _plain(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(encoded["input_ids"])

    def _encode_chat(self, chat: Chat, *, allow_special: bool) -> list[int]:
        if not self._tokenizer.chat_template:
            raise RequestError(
                "unsupported",
                "messages: the tokenizer has no chat template; put one beside it as "
                "chat_template.jinja, or send the whole prompt as text",
            )
        if not allow_special:
            self._check_roles(chat)
            messages, in_messages = self._inert.mark(chat.messages, "messages")
            tools, in_tools = self._inert.mark(chat.tools, "chat.tools")
            variables, in_variables = self._inert.mark(chat.template_kwargs, "chat.template_kwargs")
            if in_messages or in_tools or in_variables:
                self._inert.refuse_marks(chat.messages, "messages")
                self._inert.refuse_marks(chat.tools, "chat.tools")
                self._inert.refuse_marks(chat.template_kwargs, "chat.template_kwargs")
                marked = Chat(
                    messages,
                    tools,
                    chat.add_generation_prompt,
                    chat.continue_final_message,
                    variables,
                )
                return self._inert.encode_marked(self._render(marked, tokenize=False))
        return list(self._render(chat, tokenize=True))

    def _check_roles(self, chat: Chat) -> None:
        for index, message in enumerate(chat.messages):
            role = message["role"]
            if role not in _ROLES and role in self._names:
                raise RequestError(
                    "invalid_argument",
                    f"messages[{index}].role is {role!r}, which a template could make the special "
                    f"token {self._names[role]!r}; allow_special permits that",
                )

    def _render(self, chat: Chat, *, tokenize: bool) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                chat.messages,
                tools=chat.tools,
                add_generation_prompt=chat.add_generation_prompt,
                continue_final_message=chat.continue_final_message,
                tokenize=tokenize,
                return_dict=False,
                **chat.template_kwargs,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise RequestError(
                "invalid_argument", f"messages: the chat template failed: {error}"
            ) from error
