# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""In bfloat16 every family comes as near to the float32 result as transformers does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import CASES, Case, as_configured
from family_serving import PROMPT, Served, context_logits, random_tokens
from transformers import AutoModelForCausalLM, PreTrainedModel


def without_choice(case: Case) -> Case:
    """Every expert for every token: what rounding makes of a close choice is no measure."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    counts = [case.fields[name] for name in names if name in case.fields]
    if not counts:
        return case
    groups = {"topk_group": case.fields.get("n_group")}
    return replace(case, fields={**case.fields, "num_experts_per_tok": counts[0], **groups})


FIRST = {case.family: without_choice(case) for case in reversed(CASES)}


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST.keys())
def test_as_near_as_transformers(case: Case, tmp_path: Path) -> None:
    served = Served.of(case, tmp_path, torch.bfloat16)
    prompt = random_tokens(PROMPT, seed=4)
    ours = context_logits(served.driver(), prompt, 32)
    # Read back, and not converted: that would round the rotations as well.
    theirs, exact = (
        replace(served, model=_read(tmp_path, dtype)).logits(prompt)
        for dtype in (torch.bfloat16, torch.float32)
    )
    our_error, their_error = np.abs(ours - exact), np.abs(theirs - exact)
    assert 0.0 < their_error.mean() < 0.1 * exact.std()
    assert our_error.mean() < 1.3 * their_error.mean()


def _read(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    return as_configured(model)
