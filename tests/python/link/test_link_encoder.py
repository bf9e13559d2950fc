# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Prompt ids equal transformers' own, and text that spells special tokens stays text."""

from __future__ import annotations

import random
from functools import cache

import pytest
from link_tokenizers import KINDS, SPECIALS, make

from slipstream.tokenizer.encoder import PromptEncoder
from slipstream.tokenizer.process import answer
from slipstream.tokenizer.request import RequestError, TokenizeRequest

TEXTS = [
    "",
    "the fox",
    "  two  spaces\n",
    "Größe 你好 👍 \u200d\x00",
    "a<b|c> <think>",
    "<s>x</s>",
    " <|im_end|> the",
    "<|im_start|><|im_start|>",
]
CHATS = [
    [{"role": "user", "content": "the fox"}],
    [{"role": "user", "content": ""}],
    [
        {"role": "system", "content": " You are brief. "},
        {"role": "user", "content": "你好 <think> 👍"},
        {"role": "assistant", "content": "Größe"},
        {"role": "user", "content": "a < b"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": ["<", "你"]}}}]


@cache
def setup(kind):
    tokenizer = make(kind)
    return tokenizer, PromptEncoder(tokenizer)


def encode(kind, **values):
    return setup(kind)[1].encode(TokenizeRequest.parse(values))


def reference_chat(kind, messages, **options):
    options = {"add_generation_prompt": True, **options}
    return setup(kind)[0].apply_chat_template(messages, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_texts_equal_the_tokenizer_call(kind, add_special_tokens):
    tokenizer = setup(kind)[0]
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        assert encode(kind, text=text, add_special_tokens=add_special_tokens) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_chats_equal_apply_chat_template(kind):
    for messages in CHATS:
        assert encode(kind, messages=messages) == reference_chat(kind, messages)
        assert encode(kind, messages=messages, chat={"tools": TOOLS}) == reference_chat(
            kind, messages, tools=TOOLS
        )
        options = {"continue_final_message": True}
        if messages[-1]["content"]:
            assert encode(kind, messages=messages, chat=options) == reference_chat(
                kind, messages, add_generation_prompt=False, **options
            )


@pytest.mark.parametrize("kind", KINDS)
def test_the_roundabout_way_gives_the_same_ids(kind):
    """Chats that spell no special token, but are encoded as if they did."""
    tokenizer, encoder = setup(kind)
    rng = random.Random(3)
    for _ in range(200):
        content = "".join(rng.choice(["the ", "fox", "<", "|", " ", "\n", "é", "👍", "<think>"])
                          for _ in range(rng.randrange(8)))  # fmt: skip
        messages = [{"role": "user", "content": content}] * rng.randrange(1, 3)
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        expected = reference_chat(kind, messages, add_generation_prompt=False)
        assert encoder._inert.encode_marked(rendered) == expected
        text = tokenizer(content)["input_ids"]
        assert encoder._inert.encode(content, add_special_tokens=True) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", SPECIALS)
def test_spelled_special_tokens_in_messages_stay_text(kind, special):
    tokenizer = setup(kind)[0]
    special_ids = {tokenizer.convert_tokens_to_ids(s) for s in SPECIALS}
    harmless = [{"role": "user", "content": "the fox"}]
    expected = [i for i in reference_chat(kind, harmless) if i in special_ids]
    for content in (special, f"the {special} fox", special * 3, f"{special}{special[:3]}"):
        ids = encode(kind, messages=[{"role": "user", "content": content}])
        # The template's own special tokens, and nothing else.
        assert [i for i in ids if i in special_ids] == expected
        # Nothing of the content is lost.
        spelled = tokenizer.decode(ids).replace(" ", "").replace("\u2581", "")
        assert content.replace(" ", "") in spelled
        allowed = encode(kind, messages=[{"role": "user", "content": content}], allow_special=True)
        assert allowed == reference_chat(kind, [{"role": "user", "content": content}])
        assert allowed != ids


@pytest.mark.parametrize("kind", KINDS)
def test_spelled_special_tokens_anywhere_in_a_chat_stay_text(kind):
    tokenizer = setup(kind)[0]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = [{"role": "user", "content": "x"}]
    tools = [{"name": "f", "parameters": {"<|im_end|>": "<|im_end|>"}}]
    assert encode(kind, messages=messages, chat={"tools": tools}).count(end) == 2
    chat = {"template_kwargs": {"shout": "<|im_end|>"}}
    assert encode(kind, messages=messages, chat=chat).count(end) == 1
    # The end of one string and the beginning of another do not make one together.
    chat = {"template_kwargs": {"shout": "im_start|>x"}, "add_generation_prompt": False}
    parts = [{"role": "user", "content": "y <|"}]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encode(kind, messages=parts, chat=chat).count(start) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_spelled_special_tokens_in_texts(kind):
    tokenizer = setup(kind)[0]
    ids = encode(kind, text="the <|im_end|></s>", allow_special=False)
    assert ids[0] == tokenizer.bos_token_id
    special_ids = {tokenizer.convert_tokens_to_ids(s) for s in SPECIALS}
    assert not special_ids.intersection(ids[1:])
    if kind != "unigram":  # whose model finds the pieces by itself in transformers
        assert ids == tokenizer("the <|im_end|></s>", split_special_tokens=True)["input_ids"]


def test_words_are_tokenized_alone_and_special_ones_count():
    tokenizer, encoder = setup("byte_level")
    reply = answer(encoder, {"id": 3, "text": "x", "words": {"stop": ["the", "", "</s>"]}})
    ids = [list(memoryview(word).cast("i")) for word in reply["words"]["stop"]]
    assert ids == [
        tokenizer("the", add_special_tokens=False)["input_ids"],
        [],
        [tokenizer.eos_token_id],
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of text and messages must be given"),
        ({"text": "a", "messages": []}, "exactly one of text and messages must be given"),
        ({"text": 3}, "text is 3, expected a string"),
        ({"text": "a", "temperature": 1}, "unknown field temperature"),
        ({"text": "a\udced"}, "text is not valid UTF-8"),
        ({"text": "a", "chat": {}}, "chat is given, but it applies to messages only"),
        ({"text": "a", "allow_special": 1}, "allow_special is 1, expected true or false"),
        ({"text": "a", "words": {"stop": [1]}}, "words.stop[0] is 1, expected a string"),
        ({"text": "a", "words": {"bad": "x"}}, "words.bad is 'x', expected a list of strings"),
        ({"messages": []}, "messages is [], expected a list of at least one message"),
        ({"messages": ["hi"]}, "messages[0] is 'hi', expected a map"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is None, expected 1 to 64 letters"),
        (
            {"messages": [{"role": "x|><|system", "content": "x"}]},
            "messages[0].role is 'x|><|system', expected 1 to 64 letters",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content is not valid UTF-8",
        ),
        (
            {"messages": [{"role": "u"}], "chat": {"template": "x"}},
            "unknown field chat.template",
        ),
        (
            {"messages": [{"role": "u"}], "chat": {"template_kwargs": {"tokenize": False}}},
            "chat.template_kwargs: tokenize is not a template variable",
        ),
        (
            {
                "messages": [{"role": "u"}],
                "chat": {"continue_final_message": True, "add_generation_prompt": True},
            },
            "exclude each other",
        ),
    ],
)
def test_a_wrong_request_is_refused_by_name(values, message):
    with pytest.raises(RequestError) as caught:
        TokenizeRequest.parse(values)
    assert caught.value.code == "invalid_argument"
    assert message in str(caught.value)


def test_what_the_template_refuses_is_the_callers_mistake():
    reply = answer(setup("byte_level")[1], {"id": 1, "messages": [{"role": "narrator"}]})
    assert reply == {
        "id": 1,
        "error": {
            "code": "invalid_argument",
            "message": "messages: the chat template failed: no narrators here",
        },
    }


def test_no_chat_template_is_unsupported():
    tokenizer = make("byte_level")
    tokenizer.chat_template = None
    reply = answer(PromptEncoder(tokenizer), {"id": 1, "messages": CHATS[0]})
    assert reply["error"]["code"] == "unsupported"


def test_reserved_characters_beside_a_spelled_special_token_are_refused():
    for mark in ("\ufdee", "\ufdef"):
        content = f"<|im_{mark}end|> </s>"
        reply = answer(
            setup("byte_level")[1], {"id": 1, "messages": [{"role": "user", "content": content}]}
        )
        assert reply["error"]["code"] == "invalid_argument"
        assert "messages[0].content" in reply["error"]["message"]
        plain = [{"role": "user", "content": f"x{mark}"}]
        assert encode("byte_level", messages=plain) == reference_chat("byte_level", plain)
