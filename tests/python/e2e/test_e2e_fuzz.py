# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Wrong requests of every kind on a real server: each is answered, by a name where refused.

Streams that run meanwhile are what they are without them.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from e2e_client import Stream, joined_text, model_config, parse_response, prompt, question, stub
from e2e_fuzz import (
    PARAMETERS,
    Case,
    Fuzzer,
    good_llm,
    good_postprocessing,
    good_preprocessing,
    good_text,
)
from e2e_server import Server

ROOT = Path(__file__).parents[3]
SEED = 1
FUZZERS = 6  # threads
STREAMS = 16
UNARY = {
    "unary": good_llm,
    "unary_ensemble": good_text,
    "unary_steps": good_text,
    "preprocessing": good_preprocessing,
    "postprocessing": good_postprocessing,
}
DECOUPLED = {"paced": good_llm, "paced_ensemble": good_text}
OK = "ok"
REFUSALS = {"INVALID_ARGUMENT", "UNIMPLEMENTED"}
# What Triton itself says, or clients of TensorRT-LLM know, without the name: of counts, of rows, of
# JSON.
ANONYMOUS = re.compile(
    r"expected (at least )?\d+ (inputs? )?but got|expected number of inputs|"
    r"inference request batch-size must be <= \d+|batch size does not match other inputs|"
    r"Batch size > 1 requires|Streaming is only supported|"
    r"reserved for Triton usage|string correlation ID cannot be longer|"
    r"[Pp]arse|[Mm]alformed|duplicate|empty name"
)


def judge(case: Case, code: str, details: str) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if code == OK:
        return None
    # Triton's HTTP side answers numbers of its own fields that it cannot read so.
    if code == "INTERNAL" and ("Trying to stop a" in details or "Unable to parse " in details):
        return None
    if "deadline (timeout) passed" in details and case.touched & {"timeout", "timeout_ms"}:
        return None
    if code not in REFUSALS:
        return f"{code}, no refusal"
    if len(details) > 7000:
        return f"the message has {len(details)} characters"
    if any(name[:50] in details for name in case.names()) or ANONYMOUS.search(details):
        return None
    return "names nothing that is wrong"


def ask_unary(server: Server, case: Case) -> tuple[str, str]:
    try:
        stub(server.grpc).ModelInfer(case.message(), timeout=60)
    except grpc.RpcError as error:
        return error.code().name, str(error.details())
    return OK, ""


def ask_stream(server: Server, case: Case) -> tuple[str, str]:
    """A stream's errors come without their code: taken for a refusal."""
    call = stub(server.grpc).ModelStreamInfer(iter([case.message()]), timeout=60)
    errors = [r.error_message for r in call if r.error_message]
    return ("INVALID_ARGUMENT", errors[-1]) if errors else (OK, "")


def ask_http(server: Server, case: Case) -> tuple[str, str]:
    """The infer request with binary tensors."""
    header: dict[str, Any] = {"inputs": [], "parameters": {"binary_data_output": True}}
    header["parameters"] |= case.parameters
    if case.request_id:
        header["id"] = case.request_id
    for tensor in case.inputs:
        entry = {"name": tensor.name, "datatype": tensor.dtype, "shape": tensor.shape}
        header["inputs"].append(entry | {"parameters": {"binary_data_size": len(tensor.data)}})
    if case.outputs:
        header["outputs"] = [{"name": name} for name in case.outputs]
    text = json.dumps(header).encode()
    body = text + b"".join(tensor.data for tensor in case.inputs)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return post(server, f"/v2/models/{case.model}/infer", body, headers)


def ask_generate(server: Server, case: Case) -> tuple[str, str]:
    """JSON, each tensor as it reads."""
    fields = {tensor.name: tensor.plain() for tensor in case.inputs} | case.parameters
    return post(server, f"/v2/models/{case.model}/generate", json.dumps(fields).encode(), {})


def post(server: Server, path: str, body: bytes, headers: dict[str, str]) -> tuple[str, str]:
    connection = http.client.HTTPConnection(server.http, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status == 200:
        return OK, ""
    details = answer.decode(errors="replace")
    code = {400: "INVALID_ARGUMENT", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE", 500: "INTERNAL"}
    return code.get(response.status, f"HTTP {response.status}"), details


class Steady:
    """One stream after the other, all with the same text."""

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self._text = number % 2 == 0
        self._number = number
        self.expected = self.run()
        self.runs = 0
        self.wrong: list[str] = []

    def run(self) -> str:
        with Stream(self._server.grpc) as stream:
            if self._text:
                text = f"the {self._number} foxes"
                stream.send("paced_ensemble", question(text, 60, stream=True, end_id=-1))
            else:
                ids = [5 + self._number, 6, 7, 8 + self._number]
                fields = prompt(ids, 60, streaming=True, return_text=True, end_id=-1)
                stream.send("paced", fields)
            replies = stream.until_final()
        assert not any(reply.error for reply in replies), replies
        return joined_text(replies)

    def until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            text = self.run()
            self.runs += 1
            if text != self.expected:
                self.wrong.append(text)


@contextmanager
def steady_streams(server: Server) -> Iterator[list[Steady]]:
    stop = threading.Event()
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = list(pool.map(lambda number: Steady(server, number), range(STREAMS)))
        futures = [pool.submit(stream.until, stop) for stream in streams]
        try:
            yield streams
        finally:
            stop.set()
        for future in futures:
            future.result(60)


def children(server: Server) -> set[int]:
    """The tokenizer processes."""
    return {child.pid for child in psutil.Process(server.process.pid).children()}


ASK = (ask_unary, ask_unary, ask_http, ask_stream, ask_generate)


class Cases:
    """Number i of a seed goes to the models that its way of asking can ask."""

    def __init__(self, server: Server, seed: int) -> None:
        self._unary, self._decoupled = (
            Fuzzer(server.grpc, models, seed) for models in (UNARY, DECOUPLED)
        )

    def case(self, number: int) -> Case:
        return (self._decoupled if number % len(ASK) > 2 else self._unary).case(number)


def run_cases(server: Server, seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """How many answers of each kind there were, and what is wrong."""
    cases = Cases(server, seed)

    def one(number: int) -> tuple[str, str | None]:
        ask = ASK[number % len(ASK)]
        case = cases.case(number)
        try:
            code, details = ask(server, case)
            problem = judge(case, code, details)
        except Exception as error:
            code, details, problem = "raised", repr(error), "no answer"
        if problem is None:
            return code, None
        return code, (
            f"case {number} of seed {seed} to {case.model} ({ask.__name__}): {problem}; "
            f"{sorted(case.touched)}: {details[:300]}"
        )

    with ThreadPoolExecutor(FUZZERS) as pool:
        answers = list(pool.map(one, range(count), chunksize=1))
    return Counter(code for code, _ in answers), [text for _, text in answers if text]


def check(server: Server, seed: int, count: int) -> None:
    before = children(server)
    with steady_streams(server) as streams:
        codes, wrong = run_cases(server, seed, count)
    runs = sum(stream.runs for stream in streams)
    logging.getLogger(__name__).info("%d cases: %s, %d streams", count, dict(codes), runs)
    assert not wrong, f"{len(wrong)} of {count}: " + "\n".join(wrong[:20])
    assert not any(stream.wrong for stream in streams)
    assert runs >= STREAMS
    # Both are well represented, and no process of the server was lost to any.
    assert min(codes[OK], codes["INVALID_ARGUMENT"]) > count // 10, codes
    assert children(server) == before
    good = Case("unary", good_llm()).message()
    assert parse_response(stub(server.grpc).ModelInfer(good, timeout=60)).ids()


def test_every_input_output_and_parameter_is_drawn(scripted: Server) -> None:
    """Also one that is new: what a model declares is read from the server."""
    cases = Cases(scripted, SEED)
    drawn = [cases.case(number) for number in range(10_000)]
    for model in {**UNARY, **DECOUPLED}:
        config = model_config(scripted.grpc, model)
        mine = [case for case in drawn if case.model == model]
        inputs = set().union(*(case.touched for case in mine))
        assert {entry.name for entry in config.input} <= inputs, model
        assert {entry.name for entry in config.output} <= {o for c in mine for o in c.outputs}
        assert set(PARAMETERS) <= {key for case in mine for key in case.parameters}, model
    source = (ROOT / "backend" / "triton" / "request_reader.cc").read_text()
    known = re.search(r"kKnown\[\] = \{(.*?)\}", source, re.S)
    assert known
    assert set(re.findall(r'"(\w+)"', known[1])) == set(PARAMETERS)


def test_wrong_requests_of_every_kind(scripted: Server) -> None:
    check(scripted, SEED, 1000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_thousand_wrong_requests(scripted: Server) -> None:
    check(scripted, SEED + 1, 50_000)
