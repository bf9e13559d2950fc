# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a client can make of a tokenizer request: it is answered, whatever it holds."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from slipstream.demo import demo_model_path
from slipstream.tokenizer.encoder import PromptEncoder
from slipstream.tokenizer.process import answer
from slipstream.tokenizer.request import RequestError, TokenizeRequest

quick = settings(max_examples=500, deadline=None)
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["</s>", "<s>", "<|im_start|>", "﷮1﷯", "\x00", "\ud800", " \t\n", "{{ x }}"]),
)
JSON: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(["user", "assistant", "system", "im_end"]), TEXT, JSON)},
    optional={"content": st.one_of(TEXT, JSON), "tool_calls": JSON},
)
CHAT = st.fixed_dictionaries(
    {},
    optional={
        "tools": JSON,
        "add_generation_prompt": st.booleans() | JSON,
        "continue_final_message": st.booleans() | JSON,
        "template_kwargs": st.dictionaries(TEXT, JSON, max_size=2) | JSON,
        "other": JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"id": st.integers(0, 9)},
    optional={
        "text": TEXT | JSON,
        "messages": st.lists(st.one_of(MESSAGE, JSON), max_size=3) | JSON,
        "chat": CHAT | JSON,
        "add_special_tokens": st.booleans() | JSON,
        "allow_special": st.booleans() | JSON,
        "words": st.dictionaries(TEXT, st.lists(TEXT | JSON, max_size=3), max_size=3) | JSON,
        "more": JSON,
    },
)
ENCODER = PromptEncoder(AutoTokenizer.from_pretrained(demo_model_path()))


@quick
@given(REQUEST)
def test_requests(values: dict[str, Any]) -> None:
    try:
        request = TokenizeRequest.parse(values)
    except RequestError:
        return
    assert (request.text is None) != (request.chat is None)
    assert all(isinstance(word, str) for words in request.words.values() for word in words)


@quick
@given(REQUEST)
def test_every_request_is_answered_and_none_is_our_fault(values: dict[str, Any]) -> None:
    reply = answer(ENCODER, values)
    msgpack.packb(reply)
    assert reply["id"] == values["id"]
    if "error" in reply:
        assert reply["error"]["code"] != "internal", reply["error"]["message"]
        return
    assert len(reply["ids"]) % 4 == 0
    assert {name: len(words) for name, words in reply["words"].items()} == {
        name: len(words) for name, words in (values.get("words") or {}).items()
    }
