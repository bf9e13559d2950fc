# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Readers of files and frames, on inputs drawn at random: what is accepted holds together, what is
not is refused with an error of ours."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_worker_frames import payload_of, plan_with_everything
from transformers import AutoConfig

from slipstream.link import HEADER, LinkError, unpack_header
from slipstream.models.config_reader import CheckpointError
from slipstream.models.registry import describe
from slipstream.models.safetensors_header import read_safetensors_header
from slipstream.worker.config import ConfigError, WorkerConfig
from slipstream.worker.frames import (
    STEP_ARRAYS,
    STEP_HEADER,
    FrameError,
    parse_frame_header,
    parse_step,
)

quick = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 2**63, -(2**63), 2**80, 1 << 20]),
    st.integers(-5, 300),
    st.sampled_from([0.0, -1.0, 0.5, 1e300, float("inf"), float("nan")]),
)
JSON: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)


@cache
def configuration(index: int) -> dict[str, Any]:
    case = CASES[index]
    return AutoConfig.for_model(case.model_type, **{**case.sizes, **case.fields}).to_dict() | {
        "architectures": [case.family]
    }


@settings(quick, max_examples=800)
@given(st.data())
def test_configurations(data: st.DataObject) -> None:
    values = dict(configuration(data.draw(st.integers(0, len(CASES) - 1))))
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(values)))
        inside = values[key]
        if isinstance(inside, dict) and inside and data.draw(st.booleans()):
            inner = data.draw(st.sampled_from(sorted(inside, key=str)))
            values[key] = {**inside, inner: data.draw(JSON)}
        else:
            values[key] = data.draw(JSON)
    try:
        spec, _ = describe(values)
    except CheckpointError:
        return
    assert spec.vocab_size >= 1
    assert spec.num_layers == len(spec.layers) >= 1
    assert all(0 <= end < 2**31 for end in spec.end_ids)


def mutated(data: st.DataObject, good: bytes) -> bytes:
    """`good` with a few bytes replaced, left out or added."""
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        raw[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    return bytes(raw)


@quick
@given(st.data())
def test_step_frames(data: st.DataObject) -> None:
    raw = mutated(data, bytes(payload_of(plan_with_everything())))
    words = np.zeros(len(raw) // 8 + 1, np.uint64)
    words.view(np.uint8)[: len(raw)] = np.frombuffer(raw, np.uint8)
    try:
        plan = parse_step(words.view(np.uint8)[: len(raw)])
    except FrameError:
        return
    header = dict(zip(STEP_HEADER.names or (), struct.unpack_from("<Q8I", raw), strict=True))
    for name, _, count in STEP_ARRAYS:
        assert getattr(plan, name).size == header[count]


@quick
@given(st.binary(min_size=HEADER.size, max_size=HEADER.size) | st.builds(
    HEADER.pack, st.just(0x4D525453), st.integers(0, 9), st.integers(0, 20),
    st.integers(0, 2**64 - 1),
))  # fmt: skip
def test_frame_headers(raw: bytes) -> None:
    """Both readers of the header agree."""
    try:
        expected = parse_frame_header(raw)
    except FrameError:
        with pytest.raises(LinkError):
            unpack_header(raw)
        return
    assert unpack_header(raw) == expected
    assert expected[1] <= 1 << 33


@quick
@given(st.data())
def test_safetensors_headers(tmp_path: Path, data: st.DataObject) -> None:
    tensors = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(["a", "b", "__metadata__", "c"]))
        tensors[name] = data.draw(JSON)
    text = mutated(data, json.dumps(tensors).encode())
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 0, 2**63]) | st.just(len(text)))
    body = bytes(data.draw(st.sampled_from([32, 32, 32, 31, 40, 0])))
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + text + body)
    try:
        found = read_safetensors_header(file)
    except CheckpointError:
        return
    size = file.stat().st_size
    for tensor in found.values():
        assert 8 <= tensor.offset <= size


@quick
@given(st.data())
def test_worker_configurations(data: st.DataObject) -> None:
    values: dict[str, Any] = {"version": "0.1.0", "frame_version": 3, "model": "m"}
    names = st.sampled_from([*WorkerConfig.model_fields, "modle"])
    values |= data.draw(st.dictionaries(names, JSON, max_size=3))
    try:
        config = WorkerConfig.from_map(values)
    except ConfigError:
        return
    assert 1 <= config.tokens_per_block <= 1024
    assert 0 <= config.kv_cache_fraction <= 1
    assert config.max_num_seqs <= 65536
