# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels attend, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from worker_checkpoints import Reference
from worker_testing import config, load_runner

from slipstream.attention.interface import FULL, Mask, ScoreSpec
from slipstream.kernels import flashinfer_calls
from slipstream.models.selection import load_served
from slipstream.models.served import ServedModel
from slipstream.models.spec import ArchSpec
from slipstream.worker.attention_choice import choose_attention, flashinfer_lacks, refuse_device
from slipstream.worker.config import ConfigError
from slipstream.worker.startup import load_model

CPU = torch.device("cpu")


@pytest.fixture
def served(checkpoint) -> ServedModel:
    return load_served(checkpoint("bf16").path, "auto", CPU)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the device were a GPU with FlashInfer; nothing runs there."""
    monkeypatch.setattr("slipstream.worker.attention_choice.has_kernels", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flashinfer_calls, "installed_version", lambda: flashinfer_calls.VERSION)


def choose(served: ServedModel, backend: str, **settings: Any) -> str:
    return choose_attention(config("model", attention_backend=backend, **settings), served)


def refusal(served: ServedModel, backend: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        choose(served, backend, **settings)
    return str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("backend", ["triton", "flashinfer"])
def test_kernels_need_a_gpu(served: ServedModel, backend: str) -> None:
    message = (
        f"attention_backend is {backend!r}: device is 'cpu', an NVIDIA GPU of compute capability "
        "8.0 or more is needed, and torch's compiler for it; set auto"
    )
    assert refusal(served, backend) == message
    with pytest.raises(ConfigError) as error:
        refuse_device(config("model", attention_backend=backend), CPU)
    assert str(error.value) == message


def test_devices_are_refused_before_anything_is_loaded() -> None:
    for backend in ("auto", "sdpa"):
        refuse_device(config("model", attention_backend=backend), CPU)
    settings = config("/there/is/none", device="cpu", attention_backend="flashinfer")
    with pytest.raises(ConfigError, match="attention_backend is 'flashinfer': device is 'cpu'"):
        load_model(settings, lambda fraction, what: None)


def test_torch_serves_everything(served: ServedModel, checkpoint) -> None:
    assert choose(served, "sdpa") == "sdpa"
    assert choose(served, "auto") == "sdpa"
    load_runner(checkpoint("bf16").path, device="cpu", attention_backend="sdpa")


def test_auto_prefers_our_kernels(served: ServedModel, on_hopper: None) -> None:
    assert choose(served, "auto") == "triton"
    assert choose(served, "triton") == "triton"
    assert choose(served, "sdpa") == "sdpa"
    assert choose(served, "auto", tokens_per_block=48) == "sdpa"
    assert refusal(served, "triton", tokens_per_block=48) == (
        "attention_backend is 'triton': tokens_per_block is 48, must be a power of two; set auto"
    )


def test_transformers_forward_is_served_with_sdpa_alone(
    checkpoint, on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("bf16").path
    fallback = load_served(path, "auto", CPU, impl="transformers")
    assert choose(fallback, "auto") == "sdpa"
    assert "LlamaForCausalLM runs on transformers' forward" in refusal(fallback, "flashinfer")


def test_flashinfer_that_is_not_there(
    served: ServedModel, on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flashinfer_calls, "installed_version", lambda: None)
    assert refusal(served, "flashinfer") == (
        "attention_backend is 'flashinfer': flashinfer-python is not installed, "
        f"{flashinfer_calls.VERSION} is needed: pip install 'slipstream[flashinfer]'; set auto"
    )
    monkeypatch.setattr(flashinfer_calls, "installed_version", lambda: "0.6.13")
    assert "flashinfer-python 0.6.13 is installed, 0.6.14 is" in refusal(served, "flashinfer")
    assert choose(served, "auto") == "triton"


def test_flashinfer_on_another_gpu(
    served: ServedModel, on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert refusal(served, "flashinfer") == (
        "attention_backend is 'flashinfer': cpu has compute capability 8.9, 9.0 is needed; set auto"
    )


@pytest.fixture
def spec(checkpoint) -> ArchSpec:
    """Of a model that FlashInfer serves."""
    reference: Reference = checkpoint("bf16")
    served = load_served(reference.path, "auto", CPU)
    return replace(served.spec, head_dim=128)


def lacks(spec: ArchSpec, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> str | None:
    settings = {"tokens_per_block": 32, **settings}
    return flashinfer_lacks(config("model", **settings), spec, dtype)


@pytest.mark.parametrize("per_block", [16, 32, 64, 128])
def test_what_flashinfer_serves(spec: ArchSpec, per_block: int) -> None:
    assert lacks(spec, tokens_per_block=per_block) is None
    assert lacks(replace(spec, head_dim=64), tokens_per_block=per_block) is None
    windows = with_scores(spec, ScoreSpec(1.0, Mask("sliding", 4096)))
    assert lacks(windows, tokens_per_block=per_block) is None


def with_scores(spec: ArchSpec, scores: ScoreSpec, *, sinks: bool = False) -> ArchSpec:
    """With these in the last layer."""
    *others, last = spec.layers
    attention = replace(last.attention, scores=scores, sinks=sinks)
    return replace(spec, layers=(*others, replace(last, attention=attention)))


def test_what_flashinfer_does_not_serve(spec: ArchSpec) -> None:
    assert lacks(spec, torch.float32) == "dtype is float32, must be bfloat16"
    assert lacks(spec, kv_cache_dtype="fp8") == "kv_cache_dtype is 'fp8', must be 'auto'"
    assert lacks(spec, tokens_per_block=8) == (
        "tokens_per_block is 8, must be one of 16, 32, 64, 128"
    )
    assert lacks(replace(spec, head_dim=96)) == (
        "the checkpoint's head_dim is 96, must be one of 64, 128"
    )
    assert lacks(replace(spec, num_heads=64, num_kv_heads=2)) == (
        "the checkpoint has 64 query heads on 2 KV heads, must be at most 16 on each"
    )
    capped = with_scores(spec, ScoreSpec(1.0, FULL, soft_cap=50.0))
    assert lacks(capped) == (
        "layer 2 of the checkpoint has attention scores with a soft cap of 50, which is not served"
    )
    chunked = with_scores(spec, ScoreSpec(1.0, Mask("chunked", 8192)))
    assert lacks(chunked) == (
        "layer 2 of the checkpoint has attention in chunks of 8192 positions, which is not served"
    )
    sinks = with_scores(spec, ScoreSpec(1.0), sinks=True)
    assert lacks(sinks) == "layer 2 of the checkpoint has attention sinks, which is not served"


def test_what_flashinfer_lacks_is_said_at_start(served: ServedModel, on_hopper: None) -> None:
    assert refusal(served, "flashinfer", tokens_per_block=32) == (
        "attention_backend is 'flashinfer': the checkpoint's head_dim is 16, must be one of 64, "
        "128; set auto"
    )


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="attention_backend is 'xqa': Input should be 'auto'"):
        config("model", attention_backend="xqa")
