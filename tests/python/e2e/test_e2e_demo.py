# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo checkpoint behind a real server: equal to transformers and to the Python API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from e2e_client import (
    ask,
    ending,
    generate,
    generate_stream,
    joined_ids,
    joined_text,
    prompt,
    question,
)
from e2e_server import Server, decode, tokenizer
from transformers import AutoModelForCausalLM

from slipstream.api import LLM, SamplingParams
from slipstream.demo import demo_model_path

TEXTS = [
    "Once upon a time there was a",
    "The fox and the owl",
    "Sort these words: pear, apple, fig",
    "A",
]
COUNT = 40


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(demo_model_path(), dtype="float32", kv_cache_tokens=8192) as model:
        yield model


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


def greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    """What transformers generates; the end id, if it comes, left out."""
    with torch.no_grad():
        out = reference.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=3,
        )
    new = out[0, len(ids) :].tolist()
    return new[:-1] if new[-1] == 2 else new


@pytest.mark.parametrize("text", TEXTS)
def test_every_path_gives_the_text_of_transformers(
    demo: Server, llm: LLM, reference: Any, text: str
) -> None:
    ids = tokenizer()(text)["input_ids"]
    new = greedy(reference, ids, COUNT)
    expected = decode(new)
    assert llm.generate(text, SamplingParams(max_tokens=COUNT))[0].text == expected
    fields = question(text, COUNT, exclude_input_in_output=True)
    assert joined_text(ask(demo.grpc, "ensemble", fields)) == expected
    assert joined_text(ask(demo.grpc, "ensemble", fields | {"stream": True})) == expected
    assert generate(demo.http, "ensemble", fields)[1]["text_output"] == expected
    events = generate_stream(demo.http, "ensemble", fields | {"stream": True})
    assert "".join(event["text_output"] for event in events) == expected
    direct = prompt(ids, COUNT, streaming=True)
    assert joined_ids(ask(demo.grpc, "llm", direct)) == new
    whole = joined_text(ask(demo.grpc, "ensemble", question(text, COUNT)))
    assert whole == decode(ids + new)


def test_end_of_the_demo_model(demo: Server, reference: Any) -> None:
    ids = tokenizer().apply_chat_template(
        [{"role": "user", "content": "Copy these words: fox owl hen"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    new = greedy(reference, ids, 200)
    assert len(new) < 199, "the demo model ends its answers"
    fields = prompt(ids, 200, streaming=True, return_finish_reason=True, return_usage=True)
    replies = ask(demo.grpc, "llm", fields)
    assert joined_ids(replies) == new
    assert (ending(replies), ending(replies, "stop_reason")) == ("stop", "2")
    assert replies[-1].one("completion_tokens") == len(new) + 1


def test_chat_messages(demo: Server, llm: LLM) -> None:
    messages = [
        {"role": "system", "content": "Answer in capitals."},
        {"role": "user", "content": "Sort these numbers from smallest to largest: 31, 4, 15"},
    ]
    ids = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = llm.generate([list(ids)], SamplingParams(max_tokens=COUNT))[0]
    fields = {
        "text_input": "",
        "messages": json.dumps(messages),
        "max_tokens": COUNT,
        "stream": True,
        "return_usage": True,
    }
    replies = ask(demo.grpc, "ensemble", fields)
    assert joined_text(replies) == expected.text
    assert replies[-1].one("prompt_tokens") == len(ids)
    body = fields | {"stream": False, "exclude_input_in_output": True}
    assert generate(demo.http, "ensemble", body)[1]["text_output"] == expected.text
    opening = [*messages, {"role": "assistant", "content": "The numbers are"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    ids = tokenizer().apply_chat_template(opening, return_dict=False, **options)
    expected = llm.generate([list(ids)], SamplingParams(max_tokens=10))[0]
    fields = {
        "text_input": "",
        "messages": json.dumps(opening),
        "chat_options": json.dumps(options),
        "max_tokens": 10,
        "stream": True,
    }
    assert joined_text(ask(demo.grpc, "ensemble", fields)) == expected.text


def ensemble_text(demo: Server, text: str, count: int = COUNT, **fields: Any) -> str:
    return joined_text(ask(demo.grpc, "ensemble", question(text, count, stream=True, **fields)))


def test_stop_words_cut_the_text(demo: Server) -> None:
    whole = ensemble_text(demo, TEXTS[0])
    stop = whole[21:27]
    replies = ask(
        demo.grpc,
        "ensemble",
        question(TEXTS[0], COUNT, stream=True, stop_words=[stop], return_finish_reason=True),
    )
    assert joined_text(replies) == whole[: whole.index(stop)]
    assert (ending(replies), ending(replies, "stop_reason")) == ("stop_sequence", stop)


def test_bad_words_do_not_come(demo: Server) -> None:
    whole = ensemble_text(demo, TEXTS[0])
    words = whole.split()[1:]
    # Words of one token each, as they stand in the middle of a text.
    bad = [w for w in words if len(tokenizer()(w, add_special_tokens=False)["input_ids"]) == 1]
    assert bad, whole
    without = ensemble_text(demo, TEXTS[0], bad_words=[bad[0]])
    assert bad[0] in words
    assert bad[0] not in without.split()
    common = len(whole[: whole.index(f" {bad[0]}")])
    assert without[:common] == whole[:common]


def test_embedding_bias_words_and_weights(demo: Server, llm: LLM) -> None:
    word = " owl"
    ids = tokenizer()(word, add_special_tokens=False)["input_ids"]
    fields = {"embedding_bias_words": [word, ""], "embedding_bias_weights": [50.0, 1.0]}
    text = ensemble_text(demo, TEXTS[0], 8, **fields)
    bias = dict.fromkeys(ids, 50.0)
    expected = llm.generate(TEXTS[0], SamplingParams(max_tokens=8, logit_bias=bias))[0].text
    assert text == expected
    assert text != ensemble_text(demo, TEXTS[0], 8)
    direct = np.zeros((1, 2560), np.float32)
    direct[0, ids] = 50
    start = tokenizer()(TEXTS[0])["input_ids"]
    replies = ask(demo.grpc, "llm", prompt(start, 8, streaming=True, embedding_bias=direct))
    assert decode(joined_ids(replies)) == expected


SAMPLING = [
    ({"temperature": 1.3, "seed": 7}, SamplingParams(temperature=1.3, seed=7)),
    ({"top_k": 3, "seed": 8}, SamplingParams(top_k=3, seed=8)),
    ({"top_k": 1, "seed": 8, "temperature": 2.0}, SamplingParams()),
    (
        {"top_p": 0.4, "temperature": 1.5, "seed": 9},
        SamplingParams(top_p=0.4, temperature=1.5, seed=9),
    ),
    (
        {"min_p": 0.2, "temperature": 2.0, "seed": 1},
        SamplingParams(min_p=0.2, temperature=2.0, seed=1),
    ),
    ({"repetition_penalty": 1.7}, SamplingParams(repetition_penalty=1.7)),
    ({"presence_penalty": 1.5}, SamplingParams(presence_penalty=1.5)),
    ({"frequency_penalty": 0.9}, SamplingParams(frequency_penalty=0.9)),
    ({"min_tokens": 30}, SamplingParams(min_tokens=30)),
    ({"min_length": 30}, SamplingParams(min_tokens=30)),
    ({"end_id": -1}, SamplingParams(ignore_eos=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "params"), SAMPLING, ids=lambda v: ",".join(v) if isinstance(v, dict) else ""
)
def test_sampling_fields_mean_what_the_python_api_means(
    demo: Server, llm: LLM, fields: dict[str, Any], params: SamplingParams
) -> None:
    text = "Copy these words: fox owl"
    expected = llm.generate(text, params.model_copy(update={"max_tokens": COUNT}))[0].text
    assert ensemble_text(demo, text, **fields) == expected


def test_sampled_sequences_differ_and_repeat(demo: Server) -> None:
    fields = question(
        TEXTS[1], 16, temperature=1.4, seed=3, num_return_sequences=4, exclude_input_in_output=True
    )

    def texts() -> dict[int, str]:
        replies = [r for r in ask(demo.grpc, "ensemble", fields) if r.outputs]
        return {reply.one("sequence_index"): reply.text() for reply in replies}

    first = texts()
    assert sorted(first) == [0, 1, 2, 3]
    assert len(set(first.values())) > 1
    assert texts() == first


def test_log_probs_and_logits_agree_with_transformers(demo: Server, reference: Any) -> None:
    ids = tokenizer()(TEXTS[0])["input_ids"]
    fields = prompt(
        ids,
        6,
        return_log_probs=True,
        return_context_logits=True,
        return_generation_logits=True,
        exclude_input_in_output=True,
    )
    [reply] = ask(demo.grpc, "llm", fields)
    new = reply.ids()
    with torch.no_grad():
        logits = reference(torch.tensor([ids + new])).logits[0]
    context, generation = logits[: len(ids)], logits[len(ids) - 1 : -1]
    np.testing.assert_allclose(reply.outputs["context_logits"][0], context.numpy(), atol=2e-3)
    np.testing.assert_allclose(
        reply.outputs["generation_logits"][0, 0], generation.numpy(), atol=2e-3
    )
    chosen = torch.log_softmax(generation, -1)[range(6), new].numpy()
    np.testing.assert_allclose(reply.outputs["output_log_probs"][0, 0], chosen, atol=1e-3)
    assert reply.one("cum_log_probs") == pytest.approx(float(chosen.sum()), abs=1e-3)
