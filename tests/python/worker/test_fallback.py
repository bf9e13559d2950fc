# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own forward over the paged cache computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
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
from worker_testing import load_runner

from slipstream.models.fallback.decoder import FallbackDecoder

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
