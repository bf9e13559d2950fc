# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels a model's products of few rows get, and that it is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("triton")

import triton

from slipstream.kernels.skinny_linear import SkinnyConfig, candidates
from slipstream.layers.linear import Linear
from slipstream.worker import tuning

TILES = SkinnyConfig(64, 128, 2, 4, 4)  # a candidate for 32 and 64 rows
STREAM = SkinnyConfig(64, 256, 1, 4, 4, "stream")  # for 32


class Measured:
    """Stands for the GPU: times of kernels, 1 for torch's and 2 where nothing else is said."""

    def __init__(self) -> None:
        self.times: dict[SkinnyConfig, float] = {}
        self.broken: set[SkinnyConfig] = set()
        self.wrong: set[SkinnyConfig] = set()
        self.count = 0
        self._time = 1.0

    def product(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        arrivals: torch.Tensor,
        config: SkinnyConfig,
        **_: object,
    ) -> torch.Tensor:
        if config in self.broken:
            raise triton.CompilationError("", None, "gl has no such thing")
        self._time = self.times.get(config, 2.0)
        return F.linear(x, w) * (1.1 if config in self.wrong else 1.0)

    def milliseconds(
        self, product: Callable[..., torch.Tensor], rows: int, weights: list[torch.Tensor]
    ) -> float:
        self._time = 1.0
        product(torch.zeros(rows, weights[0].shape[1], dtype=weights[0].dtype), weights[0])
        self.count += 1
        return self._time


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measured:
    found = Measured()
    monkeypatch.setattr(tuning, "skinny_linear", found.product)
    monkeypatch.setattr(tuning, "milliseconds", found.milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return found


def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it a GPU that streams, with 8 multiprocessors."""
    pytest.importorskip("triton.experimental.gluon")
    monkeypatch.setattr("slipstream.kernels.skinny_linear.streams", lambda device: True)
    properties = SimpleNamespace(multi_processor_count=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def chosen(n: int = 512, k: int = 2048) -> list[SkinnyConfig | None]:
    """For 1, 16, 32, 64 and 128 rows of a model of one matrix."""
    model = nn.Sequential(Linear(k, n, bias=False, dtype=torch.bfloat16))
    tuning.choose_kernels(model)
    few = model[0].few_rows
    assert few is not None
    return [few.config(rows) for rows in (1, 16, 32, 64, 128)]


def cache_file(folder: Path) -> Path:
    return folder / "slipstream" / "linear_kernels.json"


def test_the_fastest_is_chosen_and_remembered(measured: Measured, tmp_path: Path) -> None:
    measured.times = {TILES: 0.9}
    assert chosen() == [None, None, TILES, TILES, None]
    w = torch.empty(512, 2048, dtype=torch.bfloat16)
    assert measured.count == sum(1 + len(candidates(rows, w)) for rows in (1, 16, 32, 64))
    measured.count = 0
    assert chosen() == [None, None, TILES, TILES, None]
    assert measured.count == 0, "remembered"
    assert chosen(n=256) == [None, None, TILES, TILES, None]
    assert measured.count > 0, "another matrix"
    assert len(json.loads(cache_file(tmp_path).read_text())) == 1


def test_a_kernel_has_to_be_faster_by_more_than_noise(measured: Measured) -> None:
    measured.times = {TILES: 0.99}
    assert chosen() == [None] * 5


def test_a_kernel_that_streams_is_chosen_and_remembered(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(monkeypatch)
    measured.times = {TILES: 0.9, STREAM: 0.8}
    assert chosen() == [None, None, STREAM, TILES, None]
    measured.count = 0
    assert chosen() == [None, None, STREAM, TILES, None]
    assert measured.count == 0


def test_a_kernel_that_does_not_compile_is_not_chosen(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(monkeypatch)
    measured.times = {TILES: 0.9, STREAM: 0.8}
    measured.broken = {STREAM}
    assert chosen() == [None, None, TILES, TILES, None]


def test_a_kernel_that_is_wrong_is_not_chosen(measured: Measured) -> None:
    measured.times = {TILES: 0.9}
    measured.wrong = {TILES}
    assert chosen() == [None] * 5


def test_what_is_not_offered_any_more_is_measured_again(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.times = {TILES: 0.9, STREAM: 0.8}
    with monkeypatch.context() as here:
        stream(here)
        assert chosen() == [None, None, STREAM, TILES, None]
    measured.count = 0
    assert chosen() == [None, None, TILES, TILES, None]
    w = torch.empty(512, 2048, dtype=torch.bfloat16)
    assert measured.count == 1 + len(candidates(32, w)), "the others are known"


SECTION = f"GPU torch {torch.__version__} triton {triton.__version__} kernels"
KEY = "512x2048 32 torch.bfloat16"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({f"{SECTION} 4": ["no section"]}),
        json.dumps({f"{SECTION} 4": {KEY: "64"}}),
        json.dumps({f"{SECTION} 4": {KEY: {"block_n": 64}}}),
        json.dumps({f"{SECTION} 4": {KEY: [64, 128, 2, 4, 4, True]}}),
        json.dumps({f"{SECTION} 4": {KEY: [64, 128, 2, 4, 4]}}),
        json.dumps({f"{SECTION} 4": {KEY: [64, 128, 2, 4, 4, "other"]}}),
        json.dumps({f"{SECTION} 4": {KEY: [512, 128, 2, 4, 4, "tiles"]}}),
        json.dumps({f"{SECTION} 3": {KEY: [64, 128, 1, 4, 4, True]}}),
    ],
)
def test_a_file_of_no_use_is_as_none(measured: Measured, tmp_path: Path, content: str) -> None:
    measured.times = {TILES: 0.9}
    file = cache_file(tmp_path)
    file.parent.mkdir()
    file.write_text(content)
    assert chosen() == [None, None, TILES, TILES, None]
    measured.count = 0
    assert chosen() == [None, None, TILES, TILES, None]
    assert measured.count == 0, "replaced by one of use"
