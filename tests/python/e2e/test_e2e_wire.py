# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tensors of `llm` and `ensemble` as existing clients see them, on scripted workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from e2e_client import (
    Stream,
    ask,
    ending,
    generate,
    generate_stream,
    infer,
    joined_ids,
    joined_text,
    prompt,
    question,
)
from e2e_server import VOCAB, Server, decode, tokenizer

IDS = [401, 402, 403, 404, 405]
NEW = 7
ECHO = (IDS * 2)[:NEW]
TEXT = "Once upon a time there was a fox"

both_ensembles = pytest.mark.parametrize("ensemble", ["ensemble", "steps"])


def echo_of(text: str, count: int) -> list[int]:
    ids = tokenizer()(text)["input_ids"]
    return [ids[i % len(ids)] for i in range(count)]


def llm_inputs(library: Any) -> list[Any]:
    values = {
        "input_ids": np.array([IDS], np.int32),
        "input_lengths": np.array([[len(IDS)]], np.int32),
        "request_output_len": np.array([[NEW]], np.int32),
    }
    inputs = []
    for name, array in values.items():
        tensor = library.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def test_sync_grpc_client(scripted: Server) -> None:
    with triton_grpc.InferenceServerClient(scripted.grpc) as client:
        result = client.infer("unary", llm_inputs(triton_grpc), request_id="my_request")
    response = result.get_response()
    assert response.id == "my_request"
    assert [output.name for output in response.outputs] == ["output_ids", "sequence_length"]
    assert result.as_numpy("output_ids").tolist() == [[IDS + ECHO]]
    assert result.as_numpy("sequence_length").tolist() == [[len(IDS) + NEW]]


async def test_aio_grpc_client(scripted: Server) -> None:
    async with triton_aio.InferenceServerClient(scripted.grpc) as client:
        result = await client.infer("unary", llm_inputs(triton_aio), request_id="a")
        assert result.as_numpy("output_ids").tolist() == [[IDS + ECHO]]
        streaming = triton_grpc.InferInput("streaming", [1, 1], "BOOL")
        streaming.set_data_from_numpy(np.array([[True]]))

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {
                "model_name": "llm",
                "inputs": [*llm_inputs(triton_aio), streaming],
                "request_id": "b",
            }

        pieces = []
        async for piece, error in client.stream_infer(requests()):
            assert error is None
            assert piece.get_response().id == "b"
            pieces += piece.as_numpy("output_ids").reshape(-1).tolist()
    assert pieces == ECHO


def test_http_client(scripted: Server) -> None:
    with triton_http.InferenceServerClient(scripted.http) as client:
        result = client.infer("unary", llm_inputs(triton_http), request_id="h")
    assert result.get_response()["id"] == "h"
    assert [o["name"] for o in result.get_response()["outputs"]] == [
        "output_ids",
        "sequence_length",
    ]
    assert result.as_numpy("output_ids").tolist() == [[IDS + ECHO]]


@pytest.mark.parametrize("model", ["unary_ensemble", "ensemble", "unary_steps", "steps"])
def test_http_generate(scripted: Server, model: str) -> None:
    body = {"text_input": TEXT, "max_tokens": 8, "return_usage": True, "return_finish_reason": True}
    status, answer = generate(scripted.http, model, body)
    assert status == 200
    ids = tokenizer()(TEXT)["input_ids"]
    assert answer["text_output"] == decode(ids + echo_of(TEXT, 8))
    assert answer["finish_reason"] == "length"
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (len(ids), 8)
    status, answer = generate(scripted.http, model, body | {"exclude_input_in_output": True})
    assert (status, answer["text_output"]) == (200, decode(echo_of(TEXT, 8)))


@both_ensembles
def test_http_generate_stream(scripted: Server, ensemble: str) -> None:
    body = question(TEXT, 20, stream=True, return_finish_reason=True)
    events = list(generate_stream(scripted.http, ensemble, body))
    assert "".join(event["text_output"] for event in events) == decode(echo_of(TEXT, 20))
    assert [e["finish_reason"] for e in events if "finish_reason" in e] == ["length"]
    assert "finish_reason" in events[-1]
    body = prompt(IDS, NEW, streaming=True, return_finish_reason=True)
    events = list(generate_stream(scripted.http, "llm", body))
    flat = [np.array(event["output_ids"]).reshape(-1).tolist() for event in events]
    assert sum(flat, []) == ECHO


def test_streamed_responses_are_deltas(scripted: Server) -> None:
    replies = ask(scripted.grpc, "llm", prompt(IDS, NEW, streaming=True), request_id="deltas")
    assert {reply.id for reply in replies} == {"deltas"}
    assert joined_ids(replies) == ECHO
    for reply in replies:
        ids = reply.outputs["output_ids"]
        assert list(reply.outputs)[:2] == ["output_ids", "sequence_length"]
        assert ids.shape == (1, 1, reply.outputs["sequence_length"].item())
        assert reply.outputs["sequence_length"].shape == (1, 1)
    assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]


@pytest.mark.parametrize("excluded", [False, True])
@both_ensembles
def test_exclude_input_in_output(scripted: Server, ensemble: str, excluded: bool) -> None:
    fields = prompt(IDS, NEW, exclude_input_in_output=excluded)
    [reply] = ask(scripted.grpc, "llm", fields)
    assert reply.ids() == (ECHO if excluded else IDS + ECHO)
    text = question(TEXT, NEW, exclude_input_in_output=excluded)
    replies = ask(scripted.grpc, ensemble, text)
    ids = tokenizer()(TEXT)["input_ids"]
    assert joined_text(replies) == decode(([] if excluded else ids) + echo_of(TEXT, NEW))
    assert replies[0].outputs["text_output"].shape == (1,)


@both_ensembles
def test_ensemble_stream_equals_the_whole(scripted: Server, ensemble: str) -> None:
    whole = ask(scripted.grpc, ensemble, question(TEXT, 40, exclude_input_in_output=True))
    pieces = ask(scripted.grpc, ensemble, question(TEXT, 40, stream=True), request_id="my id")
    assert joined_text(pieces) == joined_text(whole) == decode(echo_of(TEXT, 40))
    assert {reply.id for reply in pieces} == {"my id"}
    assert len(pieces) > 1


def test_padded_rows_of_a_batch_have_an_index(scripted: Server) -> None:
    rows = [[11, 12, 13], [21], [31, 32]]
    padded = np.array([row + [3] * (3 - len(row)) for row in rows], np.int32)
    fields = {
        "input_ids": padded,
        "input_lengths": np.array([[len(row)] for row in rows], np.int32),
        "request_output_len": np.array([[4], [2], [3]], np.int32),
        "return_finish_reason": np.array([[True]] * 3),
    }
    replies = ask(scripted.grpc, "llm", fields)
    assert [reply.final for reply in replies].count(True) == 1
    found = {}
    for reply in replies:
        if not reply.outputs:
            continue
        assert reply.outputs["batch_index"].shape == (1, 1)
        assert reply.one("finish_reason") == "length"
        found[reply.one("batch_index")] = reply.ids()
    assert found == {
        0: [11, 12, 13, 11, 12, 13, 11],
        1: [21, 21, 21],
        2: [31, 32, 31, 32, 31],
    }


@both_ensembles
def test_streamed_batch_through_the_ensemble(scripted: Server, ensemble: str) -> None:
    texts = ["one fox", "two owls and a cat", "a hen"]
    fields = {
        "text_input": np.array([[text] for text in texts], object),
        "max_tokens": np.array([[12]] * 3, np.int32),
        "stream": np.array([[True]] * 3),
    }
    found = {0: "", 1: "", 2: ""}
    for reply in ask(scripted.grpc, ensemble, fields):
        if reply.outputs:
            found[reply.one("batch_index")] += reply.text()
    assert found == {i: decode(echo_of(text, 12)) for i, text in enumerate(texts)}


@both_ensembles
def test_a_row_out_of_range_does_not_stop_the_others(scripted: Server, ensemble: str) -> None:
    texts = ["one fox", "two owls and a cat", "a hen"]
    fields = {
        "text_input": np.array([[text] for text in texts], object),
        "max_tokens": np.array([[12], [0], [12]], np.int32),
        "stream": np.array([[True]] * 3),
    }
    replies = ask(scripted.grpc, ensemble, fields)
    [error] = [reply.error for reply in replies if reply.error]
    assert "request_output_len (max_tokens): 0 must be at least 1" in error
    found = {0: "", 2: ""}
    for reply in replies:
        if reply.outputs:
            found[reply.one("batch_index")] += reply.text()
    assert found == {i: decode(echo_of(texts[i], 12)) for i in found}


@both_ensembles
def test_a_row_that_cannot_be_read_refuses_the_request(scripted: Server, ensemble: str) -> None:
    fields = {
        "text_input": np.array([["one fox"], ["two owls"]], object),
        "max_tokens": np.array([[12], [12]], np.int32),
        "num_logprobs": np.array([[0], [-1]], np.int32),
    }
    [reply] = ask(scripted.grpc, ensemble, fields)
    assert "num_logprobs: -1 must be at least 0" in reply.error
    assert not reply.outputs


def test_rows_that_differ_in_what_holds_for_all_are_refused(scripted: Server) -> None:
    fields = {
        "text_input": np.array([["one fox"], ["two owls"]], object),
        "max_tokens": np.array([[12], [12]], np.int32),
        "stream": np.array([[False], [True]]),
    }
    [reply] = ask(scripted.grpc, "ensemble", fields)
    assert reply.error == (
        "streaming (stream): false in row 0, true in row 1; must be the same in all rows of a "
        "request"
    )


def test_every_row_has_its_own_number_of_sequences(scripted: Server) -> None:
    fields = {
        "input_ids": np.array([[11, 12], [21, 22]], np.int32),
        "input_lengths": np.array([[2], [2]], np.int32),
        "request_output_len": np.array([[3], [2]], np.int32),
        "num_return_sequences": np.array([[1], [2]], np.int32),
        "exclude_input_in_output": np.array([[True]] * 2),
    }
    found = {
        (reply.one("batch_index"), reply.one("sequence_index")): reply.ids()
        for reply in ask(scripted.grpc, "llm", fields)
        if reply.outputs
    }
    assert found == {(0, 0): [11, 12, 11], (1, 0): [21, 22], (1, 1): [21, 22]}


@pytest.mark.parametrize("streaming", [False, True])
def test_several_sequences_have_an_index(scripted: Server, streaming: bool) -> None:
    fields = prompt(
        IDS, NEW, num_return_sequences=3, streaming=streaming, exclude_input_in_output=True
    )
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    replies = ask(scripted.grpc, "llm", fields)
    for reply in replies:
        if reply.outputs:
            found[reply.one("sequence_index")] += reply.ids()
            assert "batch_index" not in reply.outputs
    assert found == {0: ECHO, 1: ECHO, 2: ECHO}
    assert [reply.final for reply in replies].count(True) == 1


def test_requested_outputs(scripted: Server) -> None:
    fields = prompt(IDS, 2, return_log_probs=True, return_finish_reason=True)
    wanted = ["output_ids", "sequence_length", "cum_log_probs"]
    reply = infer(scripted.grpc, "unary", fields, outputs=wanted)
    assert list(reply.outputs) == wanted
    for missing in ("output_ids", "sequence_length"):
        rest = [name for name in wanted if name != missing]
        with pytest.raises(grpc.RpcError) as caught:
            infer(scripted.grpc, "unary", fields, outputs=rest)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == (
            f"{missing} tensor must be present in list of output tensors"
        )


@pytest.mark.parametrize("ensemble", ["unary_ensemble", "unary_steps"])
def test_requested_outputs_of_the_ensemble(scripted: Server, ensemble: str) -> None:
    """Any one is enough."""
    text = question(TEXT, 3, return_finish_reason=True)
    reply = infer(scripted.grpc, ensemble, text, outputs=["text_output"])
    assert list(reply.outputs) == ["text_output"]
    reply = infer(scripted.grpc, ensemble, text, outputs=["text_output", "finish_reason"])
    assert sorted(reply.outputs) == ["finish_reason", "text_output"]


def script_logprobs(count: int) -> list[float]:
    return [-(1 + i % 8) / 8 for i in range(count)]


@pytest.mark.parametrize("streaming", [False, True])
def test_log_probs(scripted: Server, streaming: bool) -> None:
    fields = prompt(IDS, 10, return_log_probs=True, num_logprobs=2, streaming=streaming)
    replies = ask(scripted.grpc, "llm", fields)
    chosen = np.concatenate([r.outputs["output_log_probs"] for r in replies], axis=2)
    assert chosen.shape == (1, 1, 10)
    assert chosen.reshape(-1).tolist() == script_logprobs(10)
    assert replies[-1].outputs["cum_log_probs"].tolist() == [[sum(script_logprobs(10))]]
    top = np.concatenate([r.outputs["top_log_probs"] for r in replies], axis=1)
    ids = np.concatenate([r.outputs["top_log_prob_ids"] for r in replies], axis=1)
    assert top.tolist() == [[[p, p - 0.125] for p in script_logprobs(10)]]
    assert ids.tolist() == [[[t, t + 1] for t in IDS * 2]]


@pytest.mark.parametrize("ensemble", ["unary_ensemble", "unary_steps"])
def test_log_probs_through_the_ensemble(scripted: Server, ensemble: str) -> None:
    fields = question(TEXT, 6, return_log_probs=True)
    reply = infer(scripted.grpc, ensemble, fields)
    assert reply.outputs["output_log_probs"].tolist() == [[script_logprobs(6)]]
    assert reply.outputs["cum_log_probs"].tolist() == [[sum(script_logprobs(6))]]


def script_logits(position: int) -> np.ndarray:
    return ((31 * position + 7 * np.arange(VOCAB)) % 1024 / 64).astype(np.float32)


@pytest.mark.parametrize(("model", "dtype"), [("unary", np.float32), ("unary_fp16", np.float16)])
def test_logits(scripted: Server, model: str, dtype: type) -> None:
    fields = prompt(IDS, 3, return_context_logits=True, return_generation_logits=True)
    reply = infer(scripted.grpc, model, fields)
    context, generation = reply.outputs["context_logits"], reply.outputs["generation_logits"]
    assert context.shape == (1, len(IDS), VOCAB)
    assert generation.shape == (1, 1, 3, VOCAB)
    assert context.dtype == generation.dtype == np.dtype(dtype)
    for position in range(len(IDS)):
        assert np.array_equal(context[0, position], script_logits(position).astype(dtype))
    for index, token in enumerate(IDS[:3]):
        expected = script_logits(len(IDS) - 1 + index)
        expected[token] = 16
        assert np.array_equal(generation[0, 0, index], expected.astype(dtype))


@pytest.mark.parametrize("streaming", [False, True])
def test_perf_metrics(scripted: Server, streaming: bool) -> None:
    ids = list(range(100, 170))  # two full blocks of 32 tokens and six more
    fields = prompt(
        ids, 30, return_perf_metrics=True, streaming=streaming, cache_salt=f"perf {streaming}"
    )
    for reused in (0, 2):
        replies = ask(scripted.grpc, "llm", fields)
        last = replies[-1]
        # KV of 99 tokens is computed: that of the last one is never needed.
        assert last.one("kv_cache_alloc_total_blocks") == 4
        assert last.one("kv_cache_reused_blocks") == reused
        assert last.one("kv_cache_alloc_new_blocks") == 4 - reused
        order = ["arrival", "first_scheduled", "first_token", "last_token"]
        times = [last.one(f"{name}_time_ns") for name in order]
        assert times == sorted(times)
        assert times[0] > 0
        assert times[3] - times[1] >= 30 * 1_000_000  # 30 steps of 1 ms
        for early in replies[:-1]:
            assert early.one("last_token_time_ns") == 0
        drafts = ("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens")
        assert [last.one(name) for name in drafts] == [0, 0, 0]
    cache_only = infer(scripted.grpc, "unary", prompt(IDS, 2, return_kv_cache_reuse_stats=True))
    assert list(cache_only.outputs)[2:] == [
        "kv_cache_alloc_new_blocks",
        "kv_cache_reused_blocks",
        "kv_cache_alloc_total_blocks",
    ]


def test_token_counts(scripted: Server) -> None:
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    whole = infer(scripted.grpc, "unary", prompt(IDS, 4, **counts))
    assert (whole.one("num_input_tokens"), whole.one("num_output_tokens")) == (5, 9)
    fields = prompt(IDS, 4, exclude_input_in_output=True, **counts)
    assert infer(scripted.grpc, "unary", fields).one("num_output_tokens") == 4
    for model, fields in (
        ("llm", prompt(IDS, 4, streaming=True, **counts)),
        ("ensemble", question("a fox", 4, stream=True, **counts)),
        ("steps", question("a fox", 4, stream=True, **counts)),
    ):
        replies = ask(scripted.grpc, model, fields)
        given = len(IDS) if model == "llm" else len(tokenizer()("a fox")["input_ids"])
        assert {reply.one("num_input_tokens") for reply in replies} == {given}
        assert sum(reply.one("num_output_tokens") for reply in replies) == 4


def test_text_of_llm_without_the_ensemble(scripted: Server) -> None:
    ids = tokenizer()(TEXT)["input_ids"]
    replies = ask(scripted.grpc, "llm", prompt(ids, 9, streaming=True, return_text=True))
    assert joined_text(replies) == decode(echo_of(TEXT, 9))
    [whole] = ask(
        scripted.grpc,
        "llm",
        prompt(ids, 9, return_text=True, skip_special_tokens=False, exclude_input_in_output=True),
    )
    assert whole.text() == tokenizer().decode(echo_of(TEXT, 9))


@pytest.mark.parametrize("model", ["keeping", "keeping_ensemble", "keeping_steps"])
@pytest.mark.parametrize("streamed", [True, False])
def test_special_tokens_in_text_as_configured_unless_the_request_says(
    scripted: Server, model: str, streamed: bool
) -> None:
    text = "a<|user|>fox"
    ids = tokenizer()(text)["input_ids"]
    expected = ids if streamed else ids * 2
    kept, skipped = tokenizer().decode(expected), decode(expected)
    assert kept != skipped
    if model == "keeping":
        fields = prompt(ids, len(ids), streaming=streamed, return_text=True)
    else:
        fields = question(text, len(ids), stream=streamed)
    for given, answer in (({}, kept), ({"skip_special_tokens": True}, skipped)):
        assert joined_text(ask(scripted.grpc, model, fields | given)) == answer


def test_one_stream_carries_many_requests(scripted: Server) -> None:
    with Stream(scripted.grpc) as stream:
        names = [
            stream.send("llm", prompt([600 + i], 5 + i, streaming=True, return_finish_reason=True))
            for i in range(16)
        ]
        replies: dict[str, list[Any]] = {name: [] for name in names}
        open_requests = set(names)
        while open_requests:
            reply = stream.next()
            assert reply.id in open_requests, "a response after the final one"
            replies[reply.id].append(reply)
            if reply.final:
                open_requests.remove(reply.id)
        assert stream.end() == []
    for i, name in enumerate(names):
        assert joined_ids(replies[name]) == [600 + i] * (5 + i)
        assert ending(replies[name]) == "length"


def test_streaming_needs_a_decoupled_model(scripted: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(scripted.grpc, "unary", prompt(IDS, 3, streaming=True))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "Streaming is only supported if model is deployed using decoupled mode."
    )
    batch = {
        "input_ids": np.array([[5], [6]], np.int32),
        "input_lengths": np.array([[1], [1]], np.int32),
        "request_output_len": np.array([[1], [1]], np.int32),
    }
    with pytest.raises(grpc.RpcError) as caught:
        infer(scripted.grpc, "unary", batch)
    assert caught.value.details() == (
        "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
    )
