# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own forward over the paged cache computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fallback_cases import BOTH, FOREIGN
from family_cases import Case
from family_serving import PROMPT, TOLERANCE, Served, context_logits, error_of, random_tokens
from test_families import (
    test_greedy_after_a_reused_prefix,
    test_greedy_alone,
    test_greedy_in_a_batch,
    test_greedy_when_preempted,
    test_logits,
)
from worker_testing import config, load_runner

from slipstream.models.fallback.decoder import FallbackDecoder
from slipstream.worker.startup import load_model

# The requests of every family, made to the models of this module.
__all__ = [
    "test_greedy_after_a_reused_prefix",
    "test_greedy_alone",
    "test_greedy_in_a_batch",
    "test_greedy_when_preempted",
    "test_logits",
]


@pytest.fixture(scope="module", params=[*FOREIGN, *BOTH], ids=lambda case: case.name)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    case: Case = request.param
    path = tmp_path_factory.mktemp("fallback")
    served = Served.of(case, path, model_impl="transformers")
    assert isinstance(served.runner.decoder, FallbackDecoder)
    return served


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_both_implementations_agree(case: Case, tmp_path: Path) -> None:
    native = Served.of(case, tmp_path)
    fallback = Served(native.model, load_runner(tmp_path, model_impl="transformers"), tmp_path)
    assert type(native.runner.decoder) is not type(fallback.runner.decoder)
    ours, theirs = native.runner.decoder.spec, fallback.runner.decoder.spec
    for name in ("architecture", "vocab_size", "max_positions", "num_heads", "num_kv_heads"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.head_dim, ours.scores, ours.end_ids) == (
        theirs.head_dim,
        theirs.scores,
        theirs.end_ids,
    )
    prompt = random_tokens(PROMPT, seed=3)
    logits = [context_logits(served.driver(), prompt, 11) for served in (native, fallback)]
    assert error_of(*logits) < TOLERANCE


def test_a_worker_says_the_same_of_both(tmp_path: Path) -> None:
    BOTH[0].make_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 2]}')
    hellos, reports = [], []
    for impl in ("native", "transformers"):
        settings = config(tmp_path, device="cpu", model_impl=impl)
        fractions: list[float] = []
        reports.append(fractions)
        hellos.append(load_model(settings, lambda f, _, to=fractions: to.append(f)).hello)
    assert hellos[0] == hellos[1]
    assert hellos[1]["end_ids"] == [2, 9]
    assert all(seen == sorted(seen) and seen[-1] == 1.0 for seen in reports)


@pytest.mark.parametrize("case", [FOREIGN[0], FOREIGN[7]], ids=lambda case: case.name)
def test_half_precision(case: Case, tmp_path: Path) -> None:
    """As near to transformers in float32 as its own bfloat16 is, or half as near again."""
    served = Served.of(case, tmp_path, torch.bfloat16, model_impl="transformers")
    assert served.runner.caches[0].shape.dtype == torch.bfloat16
    prompt = random_tokens(PROMPT, seed=4)
    exact = case.make_model().to(torch.bfloat16).float()
    with torch.inference_mode():
        wanted = exact(torch.tensor([prompt])).logits[0].numpy()
    ours = context_logits(served.driver(), prompt, 11)
    assert middle_error(ours, wanted) < 1.5 * middle_error(served.logits(prompt), wanted)


def middle_error(ours: np.ndarray, wanted: np.ndarray) -> float:
    """Not of the worst row: rounding may choose another expert in one."""
    errors = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(np.median(errors))
