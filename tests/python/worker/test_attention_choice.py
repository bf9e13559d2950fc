# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels attend, and what is refused with which words."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from worker_checkpoints import Reference
from worker_testing import config, load_runner

from slipstream.attention.interface import FULL, Mask, ScoreSpec
from slipstream.attention.kv_cache import KvCache, KvShape
from slipstream.attention.paged_triton import PagedTriton
from slipstream.kernels import flashinfer_calls
from slipstream.kernels.paged_decode import decode_tile
from slipstream.models.selection import load_served
from slipstream.models.served import ServedModel
from slipstream.models.spec import ArchSpec
from slipstream.worker.attention_choice import (
    choose_attention,
    flashinfer_lacks,
    load_flashinfer,
    refuse_device,
)
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
    narrow = with_scores(spec, ScoreSpec(1.0, Mask("sliding", 31)))
    assert (
        lacks(with_scores(spec, ScoreSpec(1.0, Mask("sliding", 32))), tokens_per_block=32) is None
    )
    assert lacks(narrow, tokens_per_block=32) == (
        "layer 2 of the checkpoint has a window of 31, less than the 32 tokens of a block, which "
        "is not served"
    )
    sinks = with_scores(spec, ScoreSpec(1.0), sinks=True)
    assert lacks(sinks) == "layer 2 of the checkpoint has attention sinks, which is not served"


def test_what_flashinfer_lacks_is_said_at_start(served: ServedModel, on_hopper: None) -> None:
    assert refusal(served, "flashinfer", tokens_per_block=32) == (
        "attention_backend is 'flashinfer': the checkpoint's head_dim is 16, must be one of 64, "
        "128; set auto"
    )


@pytest.mark.parametrize(
    ("masks", "windows", "full"),
    [
        ((FULL,), False, True),
        ((Mask("sliding", 64),), True, False),
        ((FULL, Mask("sliding", 64)), True, True),
    ],
)
def test_kernels_are_loaded_before_the_first_step(
    spec: ArchSpec, monkeypatch: pytest.MonkeyPatch, masks: tuple, windows: bool, full: bool
) -> None:
    calls = []
    monkeypatch.setattr(
        flashinfer_calls, "load_kernels", lambda *sizes, **kinds: calls.append((sizes, kinds))
    )
    layers = tuple(
        with_scores(spec, ScoreSpec(1.0, masks[i % len(masks)])).layers[-1] for i in range(4)
    )
    load_flashinfer(config("model", tokens_per_block=64), replace(spec, layers=layers))
    assert calls == [((128, 2, 64), {"windows": windows, "full": full})]


def test_which_kernels_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for FlashInfer's modules note what they are asked for."""
    calls: list[tuple] = []
    for name, function in (("xqa", "get_xqa_module"), ("prefill", "get_batch_prefill_module")):
        module = ModuleType(f"flashinfer.{name}")
        setattr(module, function, lambda *wanted, name=name: calls.append((name, *wanted)))
        monkeypatch.setitem(sys.modules, f"flashinfer.{name}", module)
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    xqa = [("xqa", *(torch.bfloat16,) * 2, 32, 128, 4, window) for window in (False, True)]
    for windows, full, expected in (
        (False, True, ["xqa False", "prefill"]),
        (True, False, ["xqa True"]),
        (True, True, ["xqa False", "xqa True", "prefill"]),
    ):
        calls.clear()
        flashinfer_calls.load_kernels(128, 4, 32, windows=windows, full=full)
        found = [f"{call[0]} {call[6]}" if call[0] == "xqa" else call[0] for call in calls]
        assert found == expected
        assert {call[:7] for call in calls if call[0] == "xqa"} <= set(xqa)


def test_kernels_that_cannot_be_compiled(spec: ArchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*sizes: int, **kinds: bool) -> None:
        raise RuntimeError("x" * 1000 + "Could not find nvcc")

    monkeypatch.setattr(flashinfer_calls, "load_kernels", fail)
    with pytest.raises(ConfigError) as error:
        load_flashinfer(config("model"), spec)
    message = str(error.value)
    assert message.startswith("attention_backend is 'flashinfer': FlashInfer could not load or ")
    assert message.endswith("xCould not find nvcc; set auto")
    assert len(message) < 720


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match="attention_backend is 'xqa': Input should be 'auto'"):
        config("model", attention_backend="xqa")


def paged(max_decodes: int, monkeypatch: pytest.MonkeyPatch, head_dim: int = 128) -> PagedTriton:
    """On a GPU of four multiprocessors, with two KV heads and two masks."""
    properties = SimpleNamespace(multi_processor_count=4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr("slipstream.kernels.paged_decode.streams", lambda device: True)
    cache = KvCache(KvShape(2, 2, 16, head_dim, torch.bfloat16), 3, torch.device("cpu"))
    scores = [ScoreSpec(1.0), ScoreSpec(1.0, Mask("sliding", 70))]
    return PagedTriton([cache], [[0, 1]], 8, scores, max_decodes=max_decodes)


@pytest.mark.parametrize(
    ("max_decodes", "head_dim", "streamed"),
    [
        (40, 128, [True] * 12 + [False] * 28),
        (12, 128, [True] * 12),
        (40, 96, [False] * 40),  # not for this size of heads
    ],
)
def test_small_batches_of_single_tokens_are_streamed(
    max_decodes: int, head_dim: int, streamed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = paged(max_decodes, monkeypatch, head_dim)
    for count in range(1, max_decodes + 1):
        kernel = backend.decode_kernel(SimpleNamespace(decode_rows=torch.zeros(count)))
        assert kernel.tile == decode_tile(head_dim, streamed[count - 1])
        assert list(kernel.schedules) == [FULL, Mask("sliding", 70)]
        for schedule in kernel.schedules.values():
            assert schedule.streamed == streamed[count - 1]
            items = schedule.most_items(count)
            assert items <= schedule.items.shape[0]
            assert items * 4 * head_dim <= kernel.workspace.sums.numel()
