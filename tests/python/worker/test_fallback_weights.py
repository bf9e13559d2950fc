# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights for transformers' own forward: read by us, converted where that loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from fallback_cases import BOTH
from safetensors.torch import save_file
from torch import nn
from worker_testing import load_runner

from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback import widened as widened_module
from slipstream.models.fallback.library import _in_turn
from slipstream.models.fallback.stored_weights import stored_weights
from slipstream.models.fallback.widened import widened


@pytest.mark.parametrize(
    ("stored", "wanted", "read"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        # The library may keep some of these as they are: that is for it to decide.
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float16),
        (torch.int64, torch.float32, torch.int64),
    ],
)
def test_values_are_those_of_the_file(tmp_path: Path, stored, wanted, read) -> None:
    tensors = {
        "matrix": torch.arange(3000).view(30, 100).to(stored),
        "scalar": torch.tensor(7).to(stored),
        "nothing": torch.empty(0, 4, dtype=stored),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = stored_weights(tmp_path, wanted)
    assert weights.keys() == tensors.keys()
    for name, tensor in tensors.items():
        value = weights[name][...]
        assert value.dtype == read
        assert torch.equal(value, tensor.to(read))


def test_views_of_an_archive(tmp_path: Path) -> None:
    matrix = torch.randn(40, 30)
    torch.save({"whole": matrix, "part": matrix[3:9, ::2].t()}, tmp_path / "pytorch_model.bin")
    weights = stored_weights(tmp_path, torch.float32)
    assert torch.equal(weights["part"][...], matrix[3:9, ::2].t())
    assert torch.equal(weights["whole"][...], matrix)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    BOTH[0].make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut off: "):
        load_runner(tmp_path, model_impl="transformers")


@pytest.mark.parametrize("before", [None, "0"])
def test_the_switch_of_the_library_is_put_back(monkeypatch: pytest.MonkeyPatch, before) -> None:
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with _in_turn():
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before


class _Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 0.5


def test_float32_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_module, "_PIECE", 50)
    torch.manual_seed(0)
    layers = [_Scaled(20, 12), nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 30, bias=False)]
    model = nn.Sequential(*layers).bfloat16().requires_grad_(False)
    exact = nn.Sequential(_Scaled(20, 12), nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 30))
    exact[3].bias = None
    exact.load_state_dict(model.state_dict())
    ids = torch.tensor([[3, 4, 19], [0, 3, 7]])
    narrow = model(ids)
    with widened(model):
        wide = model(ids)
    torch.testing.assert_close(wide, exact(ids), rtol=1e-5, atol=1e-6)
    assert torch.equal(model(ids), narrow), "everything is put back"
    assert narrow.dtype == torch.bfloat16
