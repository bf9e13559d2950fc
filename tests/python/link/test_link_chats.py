# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Kinds of tokenizers by styles of templates by conversations: the ids are those of transformers.

Two things differ by intention. Text of a caller that spells a special token stays text unless
``allow_special`` is given; there the reference is transformers' own way of asking for that. And a
role that a template could turn into a special token is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import pytest
from link_templates import CONVERSATIONS, TEMPLATES, TOOLS
from link_tokenizers import KINDS, make
from transformers import AutoTokenizer

from slipstream.demo import demo_model_path
from slipstream.tokenizer.encoder import PromptEncoder
from slipstream.tokenizer.process import answer
from slipstream.tokenizer.request import RequestError, TokenizeRequest

# Special tokens that take the spaces around them along, and ones that are found after normalising.
FLAGS = {"rstrip": {"rstrip": True}, "both_strip": {"lstrip": True, "rstrip": True}}
FLAGS["normalized"] = {"normalized": True}
ALL_KINDS = [*KINDS, *(f"byte_level/{name}" for name in FLAGS), "sentencepiece_bpe/rstrip", "demo"]


@cache
def setup(kind, style=None):
    """The tokenizer with the template of that style, and our encoder."""
    if kind == "demo":
        tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    else:
        base, _, flags = kind.partition("/")
        tokenizer = make(base, **FLAGS.get(flags, {}))
    if style is not None:
        tokenizer.chat_template = TEMPLATES[style]
    return tokenizer, PromptEncoder(tokenizer)


def outcome(encode):
    """The ids, or the error's message."""
    try:
        return list(encode())
    except Exception as error:
        return str(error).removeprefix("messages: the chat template failed: ")


def options_of(conversation):
    yield {"add_generation_prompt": True}
    yield {"add_generation_prompt": False}
    yield {"add_generation_prompt": True, "tools": TOOLS}
    if conversation[-1]["role"] == "assistant":
        yield {"add_generation_prompt": False, "continue_final_message": True}


@pytest.mark.parametrize("style", [*TEMPLATES, None])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_chats_are_those_of_transformers(kind, style):
    tokenizer, encoder = setup(kind, style)
    outcomes = Counter()
    for name, messages in CONVERSATIONS.items():
        before = json.dumps(messages)
        for options in options_of(messages):
            expected = outcome(
                lambda m=messages, o=options: tokenizer.apply_chat_template(
                    m, tokenize=True, return_dict=False, **o
                )
            )
            for allow_special in (False, True):
                request = TokenizeRequest.parse(
                    {"messages": messages, "chat": options, "allow_special": allow_special}
                )
                found = outcome(lambda r=request: encoder.encode(r))
                assert found == expected, (name, options, allow_special)
            outcomes[type(expected)] += 1
            if isinstance(expected, list) and "bos_token" in tokenizer.chat_template:
                assert expected[0] == tokenizer.bos_token_id
                assert expected.count(tokenizer.bos_token_id) == 1
        assert json.dumps(messages) == before
    assert outcomes[list] >= 10


HOSTILE = [
    "{s}",
    "x {s} y",
    "{s}{s}{t}",
    " {s}\n",
    "{s[0]}{s}{s}",
    "{h}",
    "{h}{s}{h}",
]  # s, t: special tokens; h: the first half of s


def hostile_texts(specials):
    for s, t in zip(specials, [*specials[1:], specials[0]], strict=True):
        for pattern in HOSTILE:
            yield pattern.format(s=s, t=t, h=s[: len(s) // 2])


def specials_of(tokenizer):
    return [t for t in tokenizer.all_special_tokens if t != "<unk>" and len(t) > 1]


@pytest.mark.parametrize("style", TEMPLATES)
# Not unigram: transformers refuses, the model has the special tokens among its pieces.
@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "unigram"])
def test_hostile_contents_are_the_text_that_transformers_makes_of_them_when_it_sanitizes(
    kind, style
):
    """It cuts the text around what is spelled, so ordinary tokens may be cut differently."""
    tokenizer, encoder = setup(kind, style)
    tokenizer.chat_control_tokens = []  # special tokens alone
    for content in hostile_texts(specials_of(tokenizer)):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
        for conversation in (messages, messages[:1]):
            expected = tokenizer.apply_chat_template(
                conversation,
                tokenize=True,
                return_dict=False,
                add_generation_prompt=True,
                sanitize_control_tokens=True,
            )
            ids = encoder.encode(TokenizeRequest.parse({"messages": conversation}))
            assert special_ids(tokenizer, ids) == special_ids(tokenizer, expected), content
            assert shown(tokenizer, ids) == shown(tokenizer, expected), content
            allowed = TokenizeRequest.parse({"messages": conversation, "allow_special": True})
            assert encoder.encode(allowed) == tokenizer.apply_chat_template(
                conversation, tokenize=True, return_dict=False, add_generation_prompt=True
            )


def shown(tokenizer, ids):
    """The text, without the space that a tokenizer puts in front of a part of it."""
    return tokenizer.decode(ids).replace("\u2581 ", "")


def special_ids(tokenizer, ids):
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [i for i in ids if i in special]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_special_tokens_in_any_field_stay_text(kind):
    """Parts, tool calls, tools and template variables, keys and values."""
    tokenizer, encoder = setup(kind, "chatml")
    for special in specials_of(tokenizer):

        def request(text):
            call = {"function": {"name": text, "arguments": {text: [text, {"x": text}]}}}
            return {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": text}]},
                    {"role": "assistant", "content": text, "tool_calls": [call]},
                    {"role": "tool", "content": text, "name": text},
                ],
                "chat": {"tools": [{"name": text, text: [text]}], "template_kwargs": {"x": text}},
            }

        harmless = encoder.encode(TokenizeRequest.parse(request("fox")))
        ids = encoder.encode(TokenizeRequest.parse(request(special)))
        assert special_ids(tokenizer, ids) == special_ids(tokenizer, harmless)
        allowed = TokenizeRequest.parse({**request(special), "allow_special": True})
        extra = len(special_ids(tokenizer, encoder.encode(allowed))) - len(
            special_ids(tokenizer, harmless)
        )
        assert extra == 10  # the name of the tool's message is not in the template


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_texts_are_those_of_the_tokenizer_call(kind):
    tokenizer, encoder = setup(kind)
    texts = [m["content"] for c in CONVERSATIONS.values() for m in c]
    texts = [text for text in texts if isinstance(text, str)]
    texts += hostile_texts(specials_of(tokenizer))
    for text in texts:
        for add in (True, False):
            request = {"text": text, "add_special_tokens": add}
            expected = tokenizer(text, add_special_tokens=add)["input_ids"]
            assert encoder.encode(TokenizeRequest.parse(request)) == expected
            inert = encoder.encode(TokenizeRequest.parse({**request, "allow_special": False}))
            own = special_ids(tokenizer, tokenizer("fox", add_special_tokens=add)["input_ids"])
            assert special_ids(tokenizer, inert) == own, text
            if not any(special in text for special in tokenizer.all_special_tokens):
                assert inert == expected


def test_marks_leave_json_of_ascii_too():
    tokenizer = make("byte_level")
    tokenizer.chat_template = "{{ messages | tojson(ensure_ascii=True) }}"
    encoder = PromptEncoder(tokenizer)
    messages = [{"role": "user", "content": "é <|im_end|>"}]
    ids = encoder.encode(TokenizeRequest.parse({"messages": messages}))
    assert tokenizer.decode(ids) == json.dumps(messages)
    assert special_ids(tokenizer, ids) == []


@pytest.mark.parametrize("place", ["message", "tool", "variable", "key"])
def test_marks_of_the_callers_own_beside_a_spelled_special_token_are_refused(place):
    """The alias of a token, in another string than the one that makes aliases count."""
    tokenizer, encoder = setup("byte_level", "chatml")
    for forged in (f"\ufdef{tokenizer.eos_token_id}\ufdef", "a\ufdeeb", r"a\ufdeeb"):
        messages = [{"role": "user", "content": forged if place == "message" else "x"}]
        chat = {
            "tools": [{"x": forged if place == "tool" else "y"}],
            "template_kwargs": {"x": {forged: 1} if place == "key" else "z"},
        }
        if place == "variable":
            chat["template_kwargs"] = {"x": [forged]}
        alone = TokenizeRequest.parse({"messages": messages, "chat": chat})
        assert tokenizer.eos_token_id not in encoder.encode(alone)
        messages = [*messages, {"role": "user", "content": "<|im_end|>"}]
        request = TokenizeRequest.parse({"messages": messages, "chat": chat})
        with pytest.raises(RequestError, match="contains the noncharacter U\\+FDEE or U\\+FDEF"):
            encoder.encode(request)


ROLES = ("x", "critic", "my_tool-2")


def test_a_role_that_would_make_a_special_token_is_refused():
    tokenizer = make("byte_level")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    )
    encoder = PromptEncoder(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for role in ROLES:
        messages = [{"role": role, "content": "a"}]
        assert end not in encoder.encode(TokenizeRequest.parse({"messages": messages}))
    messages = [{"role": "user", "content": "a"}, {"role": "im_end", "content": "a"}]
    with pytest.raises(RequestError) as caught:
        encoder.encode(TokenizeRequest.parse({"messages": messages}))
    assert caught.value.code == "invalid_argument"
    assert str(caught.value) == (
        "messages[1].role is 'im_end', which a template could make the special token '<|im_end|>'; "
        "allow_special permits that"
    )
    allowed = TokenizeRequest.parse({"messages": messages, "allow_special": True})
    assert encoder.encode(allowed).count(end) == 1


def test_roles_that_have_tokens_of_their_own_are_roles():
    tokenizer, encoder = setup("demo", None)
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    ids = encoder.encode(TokenizeRequest.parse({"messages": messages}))
    for role in ("system", "user", "assistant"):
        assert ids.count(tokenizer.convert_tokens_to_ids(f"<|{role}|>")) == 1


@pytest.mark.parametrize(
    ("style", "messages", "message"),
    [
        ("turns", CONVERSATIONS["system"], "No system turns"),
        ("turns", [CONVERSATIONS["user"][0]] * 2, "Turns must alternate, see turn 2"),
        (
            "headers",
            [{"role": "assistant", "content": "x", "tool_calls": []}],
            "list object has no element 0",
        ),
    ],
)
def test_what_a_template_raises_is_the_callers_mistake(style, messages, message):
    reply = answer(setup("byte_level", style)[1], {"id": 7, "messages": messages})
    assert reply["id"] == 7
    assert reply["error"]["code"] == "invalid_argument"
    assert reply["error"]["message"] == f"messages: the chat template failed: {message}"


def test_a_missing_template_is_an_error_that_says_what_to_do():
    tokenizer = make("byte_level")
    tokenizer.chat_template = None
    messages = CONVERSATIONS["user"]
    reply = answer(PromptEncoder(tokenizer), {"id": 1, "messages": messages})
    assert reply["error"] == {
        "code": "unsupported",
        "message": "messages: the tokenizer has no chat template; put one beside it as "
        "chat_template.jinja, or send the whole prompt as text",
    }
