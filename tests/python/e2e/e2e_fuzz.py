# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Requests that are wrong in ways drawn at random; number i of a seed is always the same one.

A case is a good request of one model with some inputs replaced, added or left out: values at their
extremes, other types and shapes, bytes too few or too many, malformed strings, huge texts, odd ids
and parameters.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2e_client import input_types, model_config
from e2e_server import VOCAB
from tritonclient.grpc import service_pb2

from slipstream.repository import wiring

SIZES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "INT32": 4,
    "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}  # fmt: skip
_CODES = {"BOOL": "?", "UINT8": "B", "INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f"}
_INTEGERS = (0, 1, -1, 2, 3, 9, 10, 64, 65, 100, 101, VOCAB - 1, VOCAB, 2**31 - 1, -(2**31))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, math.inf, -math.inf, math.nan, 1001.0)
_TEXTS = (
    b"", b"a fox", b" ", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "é\U0001f600".encode(), b"</s>",
    b"%s%n{{x}}", b"'\"\\", b"x" * 300, b"[]", b"{}", b"[1]", b"null", b"[" * 2000,
    b'[{"role": "user", "content": "hi"}]', b'[{"role": "user"}]', b'[{"role": 5}]',
    b'[{"role": "user", "content": ' + b"[" * 90 + b"]" * 90 + b"}]", b'{"tools": [{}]}',
    b'{"unknown": 1}', b'{"template_kwargs": {"tokenize": 1}}', b"1e999", b'[{"role": "\\ud800"}]',
)  # fmt: skip
# Request parameters that the backend knows, and some that mean something to Triton alone.
PARAMETERS = ("request_type", "priority", "cache_salt", "timeout", "id")
_FOREIGN = ("triton_enable_empty_final_response", "sequence_id", "sequence_start")
_IDS = ("", "r", "7", "é" * 20, "x" * 2000, "a b\tc", "'; drop", "\U0001f600", "null", "-1")
# How a step calls what a client gives, and names that a message may use in its place.
ALSO_CALLED = {
    "input_ids": ["input_lengths", "max_seq_len"],
    "input_lengths": ["input_ids"],
    "request_output_len": ["input_ids", "return_generation_logits"],
    "text_input": ["input_ids", "return_context_logits"],
    "messages": ["text_input", "chat"],
    "chat_options": ["chat", "messages", "text_input"],
    "min_length": ["min_tokens"],
    "TOKENS_BATCH": ["SEQUENCE_LENGTH"],
}
for _step in wiring.STEPS:
    for _tensor, _name in _step.inputs:
        ALSO_CALLED.setdefault(_name, []).append(_tensor)


@dataclass
class Input:
    """One tensor as it goes over the wire."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes

    def plain(self) -> Any:
        """As JSON would have it: one value, or a list; the bytes as text where they are none."""
        values: Any = self.data.decode(errors="replace")
        code = _CODES.get(self.dtype, "")
        if self.dtype == "BYTES" and len(self.data) >= 4:
            values = self.data[4:].decode(errors="replace")
        elif code and len(self.data) % SIZES[self.dtype] == 0:
            values = list(struct.unpack(f"<{len(self.data) // SIZES[self.dtype]}{code}", self.data))
            values = values[0] if len(values) == 1 else values
        return values


@dataclass
class Case:
    """A request, and what of it was tampered with."""

    model: str
    inputs: list[Input]
    request_id: str = ""
    outputs: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    offers: list[str] = field(default_factory=list)  # outputs that the model declares

    def message(self) -> Any:
        """As a protobuf message."""
        request = service_pb2.ModelInferRequest(model_name=self.model, id=self.request_id)
        for tensor in self.inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        for name in self.outputs:
            request.outputs.add(name=name)
        for key, value in self.parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(request.parameters[key], kind, value)
        return request

    def names(self) -> set[str]:
        """What a refusal may name."""
        return self.touched | {also for name in self.touched for also in ALSO_CALLED.get(name, [])}


def packed(dtype: str, values: Sequence[Any]) -> bytes:
    """The bytes of a tensor."""
    if dtype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    if dtype not in _CODES:
        return bytes(SIZES[dtype] * len(values))
    return struct.pack(f"<{len(values)}{_CODES[dtype]}", *values)


def scalar(name: str, dtype: str, value: Any) -> Input:
    return Input(name, dtype, [1, 1], packed(dtype, [value]))


def row(name: str, dtype: str, values: Sequence[Any]) -> Input:
    return Input(name, dtype, [1, len(values)], packed(dtype, values))


def good_llm() -> list[Input]:
    return [
        row("input_ids", "INT32", [5, 6, 7]),
        scalar("input_lengths", "INT32", 3),
        scalar("request_output_len", "INT32", 2),
    ]


def good_text() -> list[Input]:
    return [scalar("text_input", "BYTES", b"a fox"), scalar("max_tokens", "INT32", 2)]


def good_preprocessing() -> list[Input]:
    return [scalar("QUERY", "BYTES", b"a fox"), scalar("REQUEST_OUTPUT_LEN", "INT32", 2)]


def good_postprocessing() -> list[Input]:
    return [
        Input("TOKENS_BATCH", "INT32", [1, 1, 3], packed("INT32", [5, 6, 7])),
        scalar("SEQUENCE_LENGTH", "INT32", 3),
    ]


class Fuzzer:
    """Draws cases for the models of one server."""

    def __init__(self, url: str, models: dict[str, Callable[[], list[Input]]], seed: int) -> None:
        self._models = models
        self._types = {model: input_types(url, model) for model in models}
        self._offers = {
            model: [entry.name for entry in model_config(url, model).output] for model in models
        }
        self._seed = seed

    def case(self, number: int) -> Case:
        dice = random.Random(f"{self._seed}-{number}")
        model = dice.choice(list(self._models))
        case = Case(model, self._models[model](), offers=self._offers[model])
        for _ in range(dice.choice((0, 1, 1, 1, 1, 2, 3))):
            self._tamper(case, dice)
        if dice.random() < 0.1:
            case.request_id = dice.choice(_IDS)
        return case

    def _tamper(self, case: Case, dice: random.Random) -> None:
        change = dice.choices(
            (_value, _value, _dtype, _shape, _bytes, _leave_out, _twice, _unknown, _parameter,
             _outputs, _batch, _long),
            (40, 20, 6, 8, 6, 4, 2, 2, 5, 4, 3, 2),
        )[0]  # fmt: skip
        types = self._types[case.model]
        name = dice.choice(list(types))
        if change is not _value and dice.random() < 0.5:
            name = dice.choice([tensor.name for tensor in case.inputs] or [name])
        change(case, name, types.get(name, "INT32"), dice)


def _draw(dtype: str, dice: random.Random) -> Any:
    if dtype == "BOOL":
        return dice.random() < 0.5
    if dtype == "FP32":
        return dice.choice(_FLOATS)
    if dtype == "BYTES":
        return dice.choice(_TEXTS)
    if dtype in ("UINT64", "UINT8"):
        return dice.choice((0, 1, 2, 255 if dtype == "UINT8" else 2**64 - 1))
    return dice.choice(_INTEGERS)


def _put(case: Case, tensor: Input) -> None:
    case.touched.add(tensor.name)
    case.inputs = [t for t in case.inputs if t.name != tensor.name] + [tensor]


def _value(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    count = dice.choice((1, 1, 1, 1, 2, 3, 0, 40))
    shape = [1, count]
    if name in ("stop_words_list", "bad_words_list"):
        shape, count = [1, 2, count], 2 * count
    if name == "TOKENS_BATCH":
        shape = [1, 1, count]
    values = [_draw(dtype, dice) for _ in range(count)]
    _put(case, Input(name, dtype, shape, packed(dtype, values)))


def _tensor(case: Case, name: str, dtype: str, dice: random.Random) -> Input:
    for tensor in case.inputs:
        if tensor.name == name:
            return Input(name, tensor.dtype, list(tensor.shape), tensor.data)
    return scalar(name, dtype, _draw(dtype, dice))


def _dtype(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    other = dice.choice([*SIZES, "BYTES", "", "TYPE_INT32", "STRING"])
    tensor = _tensor(case, name, dtype, dice)
    if other in SIZES and 0 <= math.prod(tensor.shape) < 100 and dice.random() < 0.7:
        tensor.data = bytes(SIZES[other] * math.prod(tensor.shape))
    tensor.dtype = other
    _put(case, tensor)


def _shape(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    tensor = _tensor(case, name, dtype, dice)
    dims = (0, 1, 2, 3, -1, -(2**40), 2**31, 2**40, 2**62)
    tensor.shape = [dice.choice(dims) for _ in range(dice.randrange(5))]
    count = math.prod(tensor.shape)
    if 0 <= count < 100 and dtype != "BYTES" and dice.random() < 0.7:
        tensor.data = bytes(SIZES[dtype] * count)
    _put(case, tensor)


def _bytes(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    tensor = _tensor(case, name, dtype, dice)
    cut = dice.randrange(len(tensor.data) + 1)
    tensor.data = dice.choice(
        (
            tensor.data[:cut],
            tensor.data + bytes(dice.randrange(1, 9)),
            struct.pack("<I", 2**32 - 1) + tensor.data,
            struct.pack("<I", dice.randrange(20)) + tensor.data[4:],
            b"",
        )
    )
    _put(case, tensor)


def _leave_out(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    case.touched.add(name)
    case.inputs = [tensor for tensor in case.inputs if tensor.name != name]


def _twice(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    case.touched.add(name)
    case.inputs.append(_tensor(case, name, dtype, dice))


def _unknown(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    other = dice.choice((name[:-1], name + "x", name.upper() + "_", "", "x" * 3000, "é", "a b"))
    case.touched.add(other)
    case.inputs.append(scalar(other, "INT32", 1))


def _parameter(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    key = dice.choice((*PARAMETERS, *PARAMETERS, *_FOREIGN, "temprature", name, "x" * 5000, "é"))
    value = dice.choice((True, -1, 0, 5, 10**6, 2**62, "", "5", "x" * 5000, "1e3", "-1", "é"))
    case.touched.add(key)
    case.parameters[key] = value


def _outputs(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    names = sorted({*case.offers, "output_ids", "sequence_length", "no_such_output"})
    case.outputs = dice.sample(names, min(dice.randrange(1, 10), len(names)))
    case.touched |= {*case.outputs, "output_ids", "sequence_length"}


def _batch(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    """Rows: the same number everywhere, or nearly."""
    count = dice.choice((2, 3, 8, 70))
    for tensor in case.inputs:
        if not tensor.shape or tensor.shape[0] != 1 or dice.random() < 0.1:
            continue
        tensor.shape[0] = count
        tensor.data *= count
    case.touched |= {"batch", *(tensor.name for tensor in case.inputs)}


def _long(case: Case, name: str, dtype: str, dice: random.Random) -> None:
    first = case.inputs[0].name if case.inputs else ""
    size = dice.choice((3000, 5000, 20000, 200000))
    if first in ("text_input", "QUERY"):
        _put(case, scalar(first, "BYTES", dice.choice((b"a ", b"word ", b"\xc3\xa9")) * size))
    elif first == "input_ids":
        _put(case, row("input_ids", "INT32", [dice.randrange(VOCAB)] * size))
        _put(case, scalar("input_lengths", "INT32", size))
