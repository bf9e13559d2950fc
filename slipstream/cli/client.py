# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A small streaming client of the ensemble, over gRPC."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from slipstream.errors import SlipstreamError

ENSEMBLE = "ensemble"
_DTYPES = {str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}


class ClientError(SlipstreamError, RuntimeError):
    """The server refused a request or went away; the message is the server's."""


class StreamingClient:
    """One connection. As a context manager it is closed at the end."""

    def __init__(self, url: str) -> None:
        """url: ``host:port`` of the server's gRPC port."""
        self._client = triton.InferenceServerClient(url)
        self._url = url

    def __enter__(self) -> StreamingClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Whether a server answers and its ensemble is loaded."""
        try:
            return bool(self._client.is_model_ready(ENSEMBLE, client_timeout=5))
        except (InferenceServerException, grpc.RpcError):
            return False

    def stream(
        self, fields: Mapping[str, Any], outputs: Sequence[str] = ("text_output",)
    ) -> Iterator[dict[str, Any]]:
        """Sends one request; yields the outputs of each response as they arrive.

        fields: by input name; str, bool, int or float. An iterator that is closed early cancels the
        request. Raises ClientError.
        """
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: results.put((result, error)))
        finished = False
        try:
            self._client.async_stream_infer(
                ENSEMBLE,
                [_tensor(name, value) for name, value in fields.items()],
                outputs=[triton.InferRequestedOutput(name) for name in outputs],
                enable_empty_final_response=True,
            )
            while not finished:
                result, error = results.get()
                if error is not None:
                    finished = True
                    raise ClientError(f"{self._url}: {error}")
                response = result.get_response()
                if response.outputs:
                    yield {o.name: _value(result.as_numpy(o.name)) for o in response.outputs}
                finished = response.parameters["triton_final_response"].bool_param
        finally:
            self._client.stop_stream(cancel_requests=not finished)


def chat_fields(messages: Sequence[Mapping[str, str]], **settings: Any) -> dict[str, Any]:
    """The fields of a chat request; the messages take the prompt's place."""
    text = json.dumps(list(messages))
    return {"messages": text, "stream": True, **settings}


def _tensor(name: str, value: Any) -> Any:
    dtype = _DTYPES[type(value)]
    numpy_types: dict[str, Any] = {
        "BYTES": np.object_,
        "BOOL": np.bool_,
        "INT32": np.int32,
        "FP32": np.float32,
    }
    data = value.encode() if isinstance(value, str) else value
    tensor = triton.InferInput(name, [1, 1], dtype)
    tensor.set_data_from_numpy(np.array([[data]], dtype=numpy_types[dtype]))
    return tensor


def _value(array: Any) -> Any:
    first = array.reshape(-1)[0]
    return first.decode("utf-8") if isinstance(first, bytes) else first.item()
