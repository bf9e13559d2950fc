# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps with each attention_backend on a GPU: as near to exact as ours, and the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import VOCAB, Case
from worker_testing import Driver, load_runner

from slipstream.kernels.flashinfer_calls import installed_version
from slipstream.worker.frames import AdmitFlag, SeqFlag

FIELDS = {"head_dim": 64, "num_key_value_heads": 1, "max_position_embeddings": 2048}
WINDOWS = {"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 2}
CASES = [
    Case("Llama", "llama", "full attention", FIELDS),
    Case("Qwen 3", "qwen3", "windows on upper layers", {**FIELDS, **WINDOWS}),
]
SEQUENCES, DECODED = 20, 16


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.model_type)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flashinfer")
    request.param.make_model().to(torch.bfloat16).save_pretrained(folder)
    return folder


def all_logits(path: Path, device: str, longest: int = 600, **settings: Any) -> np.ndarray:
    """Of known sequences, chunked at random with single tokens among them, then token by token:
    ``[rows, vocab]``, one row for each sequence of each step, through graphs where there are."""
    driver = Driver(
        load_runner(
            path, device=device, tokens_per_block=32, kv_cache_tokens=16384,
            max_num_seqs=SEQUENCES, max_num_tokens=1024, **settings,
        )
    )  # fmt: skip
    random = np.random.default_rng(0)
    plan, sequences = driver.new_plan(), []
    for slot in range(SEQUENCES):
        tokens = random.integers(3, VOCAB, int(random.integers(DECODED + 2, longest))).tolist()
        flags = AdmitFlag.GENERATION_LOGITS
        sequences.append(driver.start(plan, slot, tokens, flags=flags))
    logits: list[np.ndarray] = []

    def step() -> None:
        nonlocal plan
        result = driver.runner.step(plan.build())
        logits.append(result.logits.reshape(-1, VOCAB))
        plan = driver.new_plan()

    while any(len(s.tokens) - s.computed > DECODED for s in sequences):
        budget = 1024
        for sequence in sequences:
            left = len(sequence.tokens) - DECODED - sequence.computed
            count = min(left, int(random.choice([1, 2, 60, 130, 200])), budget)
            if count > 0:
                budget -= count
                driver.add(plan, sequence, count, flags=SeqFlag.SAMPLE)
        step()
    for _ in range(DECODED):
        for sequence in sequences:
            driver.add(plan, sequence, 1, flags=SeqFlag.SAMPLE)
        step()
    return np.concatenate(logits)


def errors(logits: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.linalg.norm(logits - exact, axis=1) / np.linalg.norm(exact, axis=1)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or installed_version() is None,
    reason="needs an NVIDIA GPU and FlashInfer",
)
def test_backends_agree(path: Path) -> None:
    exact = all_logits(path, "cuda", attention_backend="sdpa", dtype="float32")
    rows = {
        name: all_logits(path, "cuda", attention_backend=name, dtype="bfloat16")
        for name in ("sdpa", "triton", "flashinfer")
    }
    ours, theirs = errors(rows["triton"], exact), errors(rows["flashinfer"], exact)
    assert theirs.mean() < 1.1 * ours.mean()
    assert theirs.max() < 1.5 * ours.max()
    # The same tokens, but where the two best are nearer to each other than rounding.
    best = np.sort(exact, axis=1)
    largest = max(float(np.abs(logits - exact).max()) for logits in rows.values())
    clear = best[:, -1] - best[:, -2] > 2 * largest
    assert clear.mean() > 0.25
    for name, logits in rows.items():
        np.testing.assert_array_equal(logits.argmax(1)[clear], exact.argmax(1)[clear], err_msg=name)


def test_rounding_is_all_that_differs(path: Path) -> None:
    """The comparison above, of what any machine can compute: chunks do not change what is exact,
    bfloat16 does, little."""
    exact, rounded = (
        all_logits(path, "cpu", 60, attention_backend="sdpa", dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    error = errors(rounded, exact)
    assert 1e-3 < error.mean() < 5e-2
    assert exact.shape[0] > SEQUENCES * DECODED
