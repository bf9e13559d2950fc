# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The first steps of a worker: made before it is ready, with nothing left behind."""

from __future__ import annotations

import pytest
import torch
from family_cases import CASES
from worker_testing import Driver, config, load_runner

from slipstream.worker.config import ConfigError
from slipstream.worker.startup import load_model
from slipstream.worker.warm_up import warm_up

PROMPT = [5, 9, 3, 7, 11, 4, 8]


@pytest.mark.parametrize(
    "shows",
    [
        "rope as trained, tied",
        "window on upper layers, yarn",
        "sinks, window on every other layer, yarn not truncated, clamped experts with biases",
        "latent attention, best two of four groups, yarn with mscale",
        "chunked attention with rope and QK norm, NoPE with temperature on every fourth layer",
    ],
)
def test_nothing_is_left_behind(tmp_path, shows: str) -> None:
    [case] = [case for case in CASES if case.shows == shows]
    case.make_model().save_pretrained(tmp_path)
    expected, _ = Driver(load_runner(tmp_path)).generate(PROMPT, 6)
    runner = load_runner(tmp_path)
    warm_up(runner, 4096)
    assert not runner._slots.admitted.any()
    assert not runner._slots.sampling.features.any()
    assert Driver(runner).generate(PROMPT, 6)[0] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [32, 1, 0, 1, 0, 1, 0]),
        ({"max_num_tokens": 5}, [5, 1, 0, 1, 0, 1, 0]),
        ({"max_num_tokens": 1, "max_num_seqs": 1}, [1, 0, 1, 0, 1, 0]),
        ({"max_seq_len": 16}, [14, 1, 0, 1, 0, 1, 0]),
        ({"max_seq_len": 16, "kv_cache_tokens": 8}, [6, 1, 0, 1, 0, 1, 0]),
        ({"max_seq_len": 2, "kv_cache_tokens": 4}, []),
    ],
)
def test_steps_keep_within_the_limits(
    checkpoint, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], expected: list[int]
) -> None:
    runner = load_runner(checkpoint("gqa").path, **settings)
    sizes: list[int] = []
    launch = runner.launch
    monkeypatch.setattr(
        runner, "launch", lambda plan: (sizes.append(plan.token_ids.size), launch(plan))[1]
    )
    warm_up(runner, settings.get("max_num_tokens", 4096))
    assert sizes == expected


def test_a_first_step_for_which_memory_does_not_suffice(
    checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("slipstream.worker.startup.warm_up", fail)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 1000))
    settings = config(checkpoint("gqa").path, device="cpu")
    told = (
        r"^out of memory on cpu: weights \d+ \+ KV cache \d+ \+ activations, of 1000 bytes, "
        "of which 77 are free now; lower kv_cache_fraction, kv_cache_bytes or kv_cache_tokens, "
        "max_num_tokens or max_num_seqs$"
    )
    with pytest.raises(ConfigError, match=told):
        load_model(settings, lambda done, what: None)


def test_a_model_that_cannot_make_a_step_is_not_loaded(
    checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("slipstream.models.decoder.Decoder.logits", fail)
    with pytest.raises(RuntimeError, match="no kernel for this"):
        load_model(config(checkpoint("gqa").path), lambda done, what: None)


def test_a_gpu_that_is_not_the_first_is_made_the_current_one(
    checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception): ...

    def make_current(device: torch.device) -> None:
        raise Made(str(device))

    monkeypatch.setattr("slipstream.worker.startup.choose_device", torch.device)
    monkeypatch.setattr("slipstream.worker.startup.refuse_device", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_device", make_current)
    settings = config(checkpoint("gqa").path, device="cuda:1")
    with pytest.raises(Made, match="cuda:1"):
        load_model(settings, lambda done, what: None)
