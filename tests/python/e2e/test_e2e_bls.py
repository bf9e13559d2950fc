# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""`tensorrt_llm_bls`: the ensemble for clients that know it by this name."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from e2e_client import (
    Stream,
    ask,
    ending,
    generate,
    generate_stream,
    joined_text,
    load,
    prompt,
    question,
)
from e2e_metrics import wait_for
from e2e_recipes import BLS
from e2e_server import Server, ServerPool

from slipstream.repository.render import parse_text, to_text

NAME = "tensorrt_llm_bls"
TEXTS = ["Once upon a time there was a", "The fox and the owl", "A"]
COUNT = 24
LONG = 2000


@pytest.fixture
def server(servers: ServerPool) -> Server:
    return servers.get(BLS)


def as_clients_send(text: str, **fields: Any) -> dict[str, Any]:
    """What asks for nothing is sent, too."""
    neutral = {
        "beam_width": 1,
        "length_penalty": 1.0,
        "bad_words": [""],
        "stop_words": [""],
        "return_log_probs": False,
        "num_draft_tokens": 0,
        "use_draft_logits": False,
        "prompt_vocab_size": 0,
    }
    return neutral | question(text, COUNT, **fields)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_like_the_ensemble(server: Server, text: str, stream: bool) -> None:
    expected = joined_text(ask(server.grpc, "ensemble", question(text, COUNT, stream=stream)))
    replies = ask(server.grpc, NAME, as_clients_send(text, stream=stream), request_id="mine")
    assert joined_text(replies) == expected
    assert len(expected) > len(text)
    assert {reply.id for reply in replies} == {"mine"}
    if stream:
        assert sum(bool(reply.text()) for reply in replies) > 1
        fields = question(text, COUNT, stream=True)
        events = list(generate_stream(server.http, NAME, fields))
        assert len(events) > 1
        assert "".join(event["text_output"] for event in events) == expected
    else:
        assert generate(server.http, NAME, question(text, COUNT))[1]["text_output"] == expected


def test_they_share_the_tokenizer_processes(server: Server) -> None:
    children = psutil.Process(server.process.pid).children()
    assert len([c for c in children if "slipstream.tokenizer" in c.cmdline()]) == 1


def test_stop_words_are_text(server: Server) -> None:
    whole = joined_text(ask(server.grpc, NAME, question(TEXTS[0], COUNT, stream=True)))
    stop = whole[11:17]
    fields = question(TEXTS[0], COUNT, stream=True, stop_words=[stop], return_finish_reason=True)
    replies = ask(server.grpc, NAME, fields)
    assert joined_text(replies) == whole[: whole.index(stop)]
    assert (ending(replies), ending(replies, "stop_reason")) == ("stop_sequence", stop)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_draft_tokens": 5}, "num_draft_tokens: 5 is not supported, must be 0"),
        ({"use_draft_logits": True}, "use_draft_logits: 1 is not supported, must be 0"),
        ({"image_url_input": "http://x"}, "IMAGE_URL (image_url_input): not supported"),
        ({"lora_task_id": 1}, "lora_task_id: not supported"),
        ({"guided_decoding_guide": "{}"}, "guided_decoding_guide: not supported"),
        ({"prompt_table_extra_id": 1}, "PROMPT_TABLE_EXTRA_ID (prompt_table_extra_id): not "),
        ({"beam_width": 2}, "beam_width: 2 is not supported, must be 1"),
    ],
)
def test_what_is_not_served_is_named(server: Server, fields: dict[str, Any], message: str) -> None:
    [reply] = ask(server.grpc, NAME, as_clients_send(TEXTS[0]) | fields)
    assert reply.error.startswith(message)
    status, answer = generate(server.http, NAME, question(TEXTS[0], COUNT) | fields)
    assert status >= 400
    assert message in answer["error"]


def test_max_tokens_is_required(server: Server) -> None:
    [reply] = ask(server.grpc, NAME, {"text_input": "hello", "stream": True})
    assert "max_tokens" in reply.error
    status, answer = generate(server.http, NAME, {"text_input": "hello"})
    assert status == 400
    assert "max_tokens" in answer["error"]


def test_a_stop_request_and_a_cancelled_one(server: Server) -> None:
    def running() -> float:
        return server.metrics().value("slipstream_running", model="tensorrt_llm")

    endless = question(TEXTS[0], LONG, stream=True, end_id=-1, return_finish_reason=True)
    stop = {"input_ids": [0], "input_lengths": 0, "request_output_len": 0, "stop": True}
    with Stream(server.grpc) as stream:
        stream.send(NAME, endless, request_id="mine")
        assert stream.next().error == ""
        [answer] = ask(server.grpc, "tensorrt_llm", stop, request_id="mine")
        assert (answer.outputs, answer.error) == ({}, "")
        replies = stream.until_final()
        assert (ending(replies), replies[-1].error) == ("cancelled", "")
    events = generate_stream(server.http, NAME, endless)
    next(events)
    wait_for(lambda: running() == 1, 5, "it runs")
    events.close()
    wait_for(lambda: running() == 0, 5, "the client is seen to have left")


def test_accumulate_tokens(server: Server) -> None:
    """As a script leaves it, which knows no tokenizer of this model."""
    config = parse_text((server.repository / NAME / "config.pbtxt").read_text())
    config.name = "accumulating"
    config.parameters["accumulate_tokens"].string_value = "True"
    config.parameters["tensorrt_llm_model_name"].string_value = "tensorrt_llm"
    config.parameters["tokenizer"].string_value = "${tokenizer_dir}"
    (server.repository / config.name / "1").mkdir(parents=True)
    (server.repository / config.name / "config.pbtxt").write_text(to_text(config))
    load(server.grpc, config.name)
    test_they_share_the_tokenizer_processes(server)
    fields = question(TEXTS[0], COUNT, stream=True, return_usage=True)
    whole = joined_text(ask(server.grpc, NAME, fields))
    replies = [reply for reply in ask(server.grpc, config.name, fields) if reply.outputs]
    texts = [reply.text() for reply in replies]
    assert len(texts) > 1
    assert texts[-1] == whole
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before)
    assert replies[-1].one("completion_tokens") == COUNT
    at_once = {"exclude_input_in_output": True, "stream": False}
    assert joined_text(ask(server.grpc, config.name, fields | at_once)) == whole


def test_it_is_withdrawn_with_its_llm(servers: ServerPool) -> None:
    with servers.own(BLS) as server:
        assert joined_text(ask(server.grpc, NAME, question(TEXTS[0], 4)))
        server.workers()[0].kill()
        for model in ("tensorrt_llm", "ensemble", NAME):
            wait_for(lambda m=model: "was withdrawn" in server.state_of(m)[1], 5, "withdrawn")
            assert not server.is_ready(model)
        load(server.grpc, "tensorrt_llm")
        load(server.grpc, NAME)
        assert server.is_ready(NAME)
        assert joined_text(ask(server.grpc, NAME, question(TEXTS[0], 4)))
        assert not ask(server.grpc, "tensorrt_llm", prompt([5, 6], 2))[0].error
