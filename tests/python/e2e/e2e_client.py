# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A client that shows every response of a gRPC stream as it is, and plain HTTP helpers."""

from __future__ import annotations

import http.client
import json
import queue
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

TIMEOUT_S = 60.0
_NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "BYTES": np.object_,
}
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """One response: outputs in the order they came; `error` is empty for a success."""

    id: str
    outputs: dict[str, np.ndarray]
    error: str
    final: bool

    def text(self) -> str:
        """`text_output`, empty if there is none."""
        found = self.outputs.get("text_output")
        return "" if found is None else "".join(part.decode() for part in found.reshape(-1))

    def ids(self) -> list[int]:
        """`output_ids`, empty if there are none."""
        found = self.outputs.get("output_ids")
        return [] if found is None else [int(i) for i in found.reshape(-1)]

    def one(self, name: str) -> Any:
        """The only element of an output; strings as str."""
        value = self.outputs[name].reshape(-1)
        assert value.size == 1, (name, value)
        item = value[0]
        return item.decode() if isinstance(item, bytes) else item.item()


def joined_text(replies: Sequence[Reply]) -> str:
    return "".join(reply.text() for reply in replies)


def joined_ids(replies: Sequence[Reply]) -> list[int]:
    return [token for reply in replies for token in reply.ids()]


def ending(replies: Sequence[Reply], name: str = "finish_reason") -> Any:
    """The value of an output that exactly one response must carry."""
    found = [reply.one(name) for reply in replies if name in reply.outputs]
    assert len(found) == 1, (name, found)
    return found[0]


@cache
def channel(url: str) -> grpc.Channel:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(url, options=unlimited)


def stub(url: str) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel(url))


def model_config(url: str, model: str) -> Any:
    """The configuration that the server serves."""
    request = service_pb2.ModelConfigRequest(name=model)
    return stub(url).ModelConfig(request, timeout=TIMEOUT_S).config


@cache
def input_types(url: str, model: str) -> dict[str, str]:
    names = {"TYPE_STRING": "BYTES"}
    found = {}
    for entry in model_config(url, model).input:
        name = model_config_pb2.DataType.Name(entry.data_type)
        found[entry.name] = names.get(name, name.removeprefix("TYPE_"))
    return found


def make_request(
    url: str,
    model: str,
    fields: Fields,
    request_id: str = "",
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """A request. Arrays go as they are, batch dimension included; a scalar becomes [1, 1], a list
    one row of a batch of one."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    types = input_types(url, model)
    for name, value in fields.items():
        dtype = types[name]
        array = value
        if not isinstance(array, np.ndarray):
            array = np.array(value, _NUMPY[dtype])[None]
            array = array[None] if array.ndim == 1 else array
        request.inputs.add(name=name, datatype=dtype, shape=list(array.shape))
        if dtype == "BYTES":
            texts = [str(item).encode() for item in array.reshape(-1)]
            packed = serialize_byte_tensor(np.array(texts, np.object_))
            raw = packed.item() if packed.size else b""
        else:
            raw = np.ascontiguousarray(array, _NUMPY[dtype]).tobytes()
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    for key, setting in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(setting)]
        setattr(request.parameters[key], kind, setting)
    return request


def parse_response(response: Any, error: str = "") -> Reply:
    outputs: dict[str, np.ndarray] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            array = deserialize_bytes_tensor(raw)
        else:
            array = np.frombuffer(raw, _NUMPY[output.datatype])
        assert output.name not in outputs
        outputs[output.name] = array.reshape(list(output.shape))
    # A request that the server refuses itself gets an error without this parameter.
    known = "triton_final_response" in response.parameters
    final = response.parameters["triton_final_response"].bool_param if known else bool(error)
    return Reply(response.id, outputs, error, final)


def infer(url: str, model: str, fields: Fields, **options: Any) -> Reply:
    """One unary call. Raises grpc.RpcError."""
    request = make_request(url, model, fields, **options)
    return parse_response(stub(url).ModelInfer(request, timeout=TIMEOUT_S))


class Stream:
    """One ModelStreamInfer call; replies come in the order the server sent them."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = stub(url).ModelStreamInfer(iter(self._requests.get, None), timeout=timeout_s)
        self._numbers = iter(range(1 << 30))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The server keeps a model as long as a stream is open that it was used on.
        if error is None:
            self.end()
        else:
            self._requests.put(None)
            self._call.cancel()

    def send(self, model: str, fields: Fields, request_id: str = "", **options: Any) -> str:
        """Sends a request; returns its id."""
        request_id = request_id or f"r{next(self._numbers)}"
        request = make_request(self._url, model, fields, request_id, **options)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        self._requests.put(request)
        return request_id

    def next(self) -> Reply:
        """The next response of any request."""
        response = next(self._call)
        return parse_response(response.infer_response, response.error_message)

    def until_final(self) -> list[Reply]:
        """The responses up to the next final one."""
        replies = [self.next()]
        while not replies[-1].final:
            replies.append(self.next())
        return replies

    def ask(self, model: str, fields: Fields, **options: Any) -> list[Reply]:
        """Every response of one request, when no other is in flight on this stream."""
        self.send(model, fields, **options)
        return self.until_final()

    def close_sending(self) -> None:
        """No more requests; the server closes its side after the last response."""
        self._requests.put(None)

    def rest(self) -> Iterator[Reply]:
        """What comes until the server closes its side."""
        for response in self._call:
            yield parse_response(response.infer_response, response.error_message)

    def end(self) -> list[Reply]:
        """Closes our side; what the server still sends, until it closes its own."""
        self.close_sending()
        return list(self.rest())

    def cancel(self) -> None:
        self._call.cancel()


def ask(url: str, model: str, fields: Fields, **options: Any) -> list[Reply]:
    """Every response of one request on a stream of its own, which must hold nothing else."""
    with Stream(url) as stream:
        replies = stream.ask(model, fields, **options)
        assert stream.end() == []
    return replies


def http_post(url: str, path: str, body: Any) -> tuple[int, Any]:
    """Status and parsed JSON of one POST."""
    host, port = url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    return response.status, json.loads(text) if text else None


def generate(url: str, model: str, body: Any) -> tuple[int, Any]:
    return http_post(url, f"/v2/models/{model}/generate", body)


def generate_stream(url: str, model: str, body: Any) -> Iterator[dict[str, Any]]:
    """The events of /generate_stream; closing the iterator closes the connection."""
    host, port = url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    path = f"/v2/models/{model}/generate_stream"
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.getheader("Content-Type", "").startswith("text/event-stream")
        for line in response:
            if line.strip():
                assert line.startswith(b"data: "), line
                yield json.loads(line[6:])
    finally:
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()


def prompt(ids: Sequence[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
    """The inputs of `llm` for a prompt of token ids."""
    needed = {"input_ids": list(ids), "input_lengths": len(ids), "request_output_len": max_tokens}
    return needed | fields


def question(text: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    """The inputs of `ensemble` for a text."""
    return {"text_input": text, "max_tokens": max_tokens} | fields


def load(url: str, model: str) -> None:
    """Loads a model of the repository. Raises grpc.RpcError with the reason of a failure."""
    stub(url).RepositoryModelLoad(
        service_pb2.RepositoryModelLoadRequest(model_name=model), timeout=TIMEOUT_S
    )


def unload(url: str, model: str) -> None:
    """Asks for a model to be unloaded; returns before it is."""
    stub(url).RepositoryModelUnload(
        service_pb2.RepositoryModelUnloadRequest(model_name=model), timeout=TIMEOUT_S
    )
