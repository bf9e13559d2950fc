# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A family's checkpoint in transformers' hands and in ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_cases import VOCAB, Case
from transformers import PreTrainedModel
from worker_testing import Driver, load_runner, logits_of

from slipstream.worker.engine import ModelRunner
from slipstream.worker.frames import SeqFlag

STEPS = 64
TOLERANCE = 1e-4  # of the length of a row of logits
PROMPT = 70  # tokens: longer than any window of the cases


@dataclass(frozen=True)
class Served:
    """One case, loaded by both."""

    model: PreTrainedModel
    runner: ModelRunner
    path: Path

    @classmethod
    def of(
        cls, case: Case, path: Path, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Served:
        """``options`` of the worker's configuration."""
        model = case.make_model().to(dtype)
        model.save_pretrained(path)
        # Windowed pools of 72 blocks: a batch of the tests goes through them more than once.
        sizes = {"kv_cache_tokens": 2048, "max_num_seqs": 9, "max_num_tokens": PROMPT}
        return cls(model, load_runner(path, **{**sizes, **options}), path)

    def driver(self, seed: int = 0) -> Driver:
        self.forget()  # whatever a test before this one left
        return Driver(self.runner, seed)

    def forget(self) -> None:
        for cache in self.runner.caches:
            cache.pool.fill_(float("nan"))

    def logits(self, tokens: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0].float().numpy()

    def assert_close(self, ours: np.ndarray, tokens: list[int]) -> None:
        theirs = self.logits(tokens)
        assert ours.shape == theirs.shape
        assert error_of(ours, theirs) < TOLERANCE

    def assert_greedy(self, prompt: list[int], generated: list[int]) -> None:
        """By induction: each token is the one that transformers chooses after those before."""
        assert len(generated) == STEPS
        chosen = self.logits(prompt + generated[:-1])[len(prompt) - 1 :].argmax(-1)
        assert generated == chosen.tolist()


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest distance of a row to its counterpart, as a share of that one's length."""
    return float((np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max())


def random_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, count).tolist()


def context_logits(driver: Driver, tokens: list[int], chunk: int) -> np.ndarray:
    plan = driver.new_plan()
    sequence = driver.start(plan, 0, tokens)
    rows: list[np.ndarray] = []
    while sequence.computed < len(tokens):
        count = min(chunk, len(tokens) - sequence.computed)
        driver.add(plan, sequence, count, flags=SeqFlag.CONTEXT_LOGITS)
        rows += list(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
        plan = driver.new_plan()
    driver.runner.step(plan.retire(0).build())
    return np.stack(rows)
