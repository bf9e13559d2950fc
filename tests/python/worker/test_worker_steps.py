# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The model runner's results: sampling through steps, logits, log probabilities, bad plans."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from worker_checkpoints import VOCAB
from worker_testing import Driver, PlanBuilder, load_runner, logits_of, logprobs_of

from slipstream.worker.frames import AdmitFlag, SeqFlag, SeqStatus
from slipstream.worker.slots import PlanError

PROMPT = [5, 9, 33, 41, 7, 7, 100]


@pytest.fixture
def driver(checkpoint):
    return Driver(load_runner(checkpoint("gqa").path))


def sampled_params(seed):
    return {
        "seed": seed,
        "temperature": (0.8, 1.2)[seed % 2],
        "top_k": (0, 30)[seed // 2 % 2],
        "top_p": (1.0, 0.9)[seed // 4 % 2],
        "repetition_penalty": (1.0, 1.2)[seed // 8 % 2],
        "top_p_decay": (1.0, 0.95)[seed // 16 % 2],
    }


def test_same_seed_same_tokens_alone_and_in_a_batch_of_64(driver):
    prompts = [[seed + 3, *PROMPT, *range(3, 3 + seed % 11)] for seed in range(64)]
    plan = driver.new_plan()
    sequences = [
        driver.start(plan, (slot * 37) % 64, prompt, **sampled_params(slot))
        for slot, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        driver.add(plan, sequence, len(sequence.tokens))
    together = [driver.runner.step(plan.build()).tokens]
    for _ in range(15):
        plan = driver.new_plan()
        for sequence, token in zip(sequences, together[-1].tolist(), strict=True):
            sequence.tokens.append(token)
            driver.add(plan, sequence, 1, from_slot=True)
        together.append(driver.runner.step(plan.build()).tokens)
    plan = driver.new_plan()
    for sequence in sequences:
        plan.retire(sequence.slot)
        driver.release(sequence)
    driver.runner.step(plan.build())
    for seed, tokens in enumerate(np.array(together).T.tolist()):
        alone, _ = driver.generate(prompts[seed], 16, slot=seed, chunk=5, **sampled_params(seed))
        assert alone == tokens


@pytest.mark.parametrize("seed", [1, 8, 17, 31])
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(driver, seed):
    """Preemption, restart: admitted again with all its tokens, the draws continue."""
    params = sampled_params(seed) | {"bad_words": [[3], [50, 51]], "min_tokens": 14}
    params |= {"end_ids": [2, 7, 60], "frequency_penalty": 0.3, "prompt_ignore_length": 2}
    whole, _ = driver.generate(PROMPT, 20, slot=1, **params)
    known = PROMPT + whole[:9]
    plan = driver.new_plan()
    sequence = driver.start(plan, 3, known, **params)
    # The generated index still counts from the end of the original prompt.
    plan._admitted[-1]["prompt_len"] = len(PROMPT)
    driver.add(plan, sequence, len(known))
    resumed = driver.runner.step(plan.build()).tokens.tolist()
    while len(resumed) < 11:
        sequence.tokens.append(resumed[-1])
        driver.add(plan := driver.new_plan(), sequence, 1, from_slot=True)
        resumed += driver.runner.step(plan.build()).tokens.tolist()
    assert resumed == whole[9:]


def test_logprobs_equal_transformers(checkpoint, driver):
    reference = checkpoint("gqa")
    generated, results = driver.generate(
        PROMPT, 10, seed=4, temperature=1.3, num_logprobs=3, repetition_penalty=1.5
    )
    expected = torch.log_softmax(reference.logits(PROMPT + generated), -1)
    for step, result in enumerate(results):
        row = expected[len(PROMPT) - 1 + step]
        (ids, values) = logprobs_of(result)[0]
        assert result.logprob_width.tolist() == [4]
        assert ids[0] == generated[step]
        assert ids[1:].tolist() == row.topk(3).indices.tolist()
        np.testing.assert_allclose(values, row[torch.from_numpy(ids).long()], atol=1e-3)


@pytest.mark.parametrize("rows_at_once", [3, 512])
def test_context_and_generation_logits_in_one_step(checkpoint, driver, monkeypatch, rows_at_once):
    monkeypatch.setattr("slipstream.worker.engine._LOGIT_ROWS", rows_at_once)
    reference = checkpoint("gqa")
    other = [11, 12, 13]
    plan = driver.new_plan()
    plan.admit(0, flags=AdmitFlag.GENERATION_LOGITS, prompt_len=len(PROMPT))
    plan.admit(1, prompt_len=3).admit(2, flags=AdmitFlag.GENERATION_LOGITS, prompt_len=3)
    plan.admit(3, prompt_len=3)
    both = SeqFlag.SAMPLE | SeqFlag.CONTEXT_LOGITS
    plan.seq(1, other, 0, [0]).seq(0, PROMPT, 0, [1, 2], both).seq(3, other, 0, [5], 0)
    plan.seq(2, other, 0, [3])
    result = driver.runner.step(plan.build())
    assert result.slot.tolist() == [1, 0, 3, 2]
    assert result.num_tokens.tolist() == [1, 1, 0, 1]
    assert result.context_rows.tolist() == [0, 7, 0, 0]
    assert result.generation_rows.tolist() == [0, 1, 0, 1]
    ours = logits_of(result, VOCAB)
    prompt_logits, other_logits = reference.logits(PROMPT), reference.logits(other)
    expected = torch.cat((prompt_logits, prompt_logits[-1:]))
    np.testing.assert_allclose(ours[1], expected, atol=2e-4)
    np.testing.assert_allclose(ours[3], other_logits[-1:], atol=2e-4)
    best = [int(other_logits[-1].argmax()), int(prompt_logits[-1].argmax())]
    assert result.tokens.tolist() == [*best, best[0]]


def test_generation_logits_are_those_before_penalties(checkpoint, driver):
    reference = checkpoint("gqa")
    generated, results = driver.generate(
        PROMPT, 3, flags=AdmitFlag.GENERATION_LOGITS, bias=[(8, 50.0)]
    )
    assert generated == [8, 8, 8]
    ours = np.concatenate([logits_of(result, VOCAB)[0] for result in results])
    np.testing.assert_allclose(ours, reference.logits(PROMPT + generated)[6:9], atol=2e-4)


def test_a_sequence_that_turns_non_finite_fails_alone(driver):
    plan = driver.new_plan()
    plan.admit(0, prompt_len=3, num_logprobs=1, flags=AdmitFlag.GENERATION_LOGITS)
    plan.admit(1, prompt_len=3, num_logprobs=1, flags=AdmitFlag.GENERATION_LOGITS)
    plan.seq(0, [4, 5, 6], 0, [0]).seq(1, [4, 5, 6], 0, [1])
    good = driver.runner.step(plan.build())
    assert good.status.tolist() == [SeqStatus.OK, SeqStatus.OK]
    driver.runner.caches[0].pool[:, 0] = float("nan")
    plan = driver.new_plan().seq(0, [-1], 3, []).seq(1, [-1], 3, [])
    result = driver.runner.step(plan.build())
    assert result.status.tolist() == [SeqStatus.NON_FINITE, SeqStatus.OK]
    assert result.num_tokens.tolist() == [0, 1]
    assert result.logprob_width.tolist() == [0, 2]
    assert result.generation_rows.tolist() == [0, 1]
    assert result.tokens.size == 1
    assert result.logprob_ids.size == 2
    assert result.logits.size == VOCAB


def test_a_plan_without_sequences_only_changes_slots(driver):
    driver.runner.step(PlanBuilder(1).admit(4).build())
    result = driver.runner.step(PlanBuilder(2).retire(4).copy(0, 1, 2).build())
    assert (result.step_id, result.slot.size, result.tokens.size) == (2, 0, 0)
    assert result.end_ns >= result.start_ns > 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PlanBuilder().seq(3, [1], 0, [0]), r"step 1 names slots \[3\], which are not admitted"),
        (PlanBuilder().admit(128), "slot 128 is out of range, there are 128"),
        (PlanBuilder().retire(199), "slot 199 is out of range, there are 128"),
        (PlanBuilder().seq(128, [1], 0, [0]), "slot 128 is out of range"),
        (
            functools.reduce(lambda plan, i: plan.seq(i, [1], 0, [0]), range(65), PlanBuilder()),
            "step 1 has 65 sequences, max_num_seqs is 64",
        ),
        (
            PlanBuilder().admit(0).seq(0, [1] * 5, 0, [0]),
            r"blocks of slots \[0\] do not cover its tokens",
        ),
        (
            PlanBuilder().admit(0).seq(0, [1], 0, [0] * 513),
            "gives a slot 513 blocks, the longest sequence needs 512",
        ),
    ],
)
def test_plans_that_contradict_themselves_are_refused(driver, plan, message):
    with pytest.raises(PlanError, match=message):
        driver.runner.step(plan.build())
