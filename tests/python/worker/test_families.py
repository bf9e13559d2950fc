# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every family computes what transformers computes, however its requests are served."""

from __future__ import annotations

import pytest
import torch
from family_cases import WINDOW
from family_serving import PROMPT, STEPS, Served, context_logits, random_tokens
from worker_testing import Driver, PlanBuilder, TestSequence

from slipstream.models.decoder import Decoder


def test_layers_with_a_window_have_a_pool_of_its_size(served: Served) -> None:
    masks = {scores.mask for scores in served.runner.decoder.spec.scores}
    assert {group.mask for group in served.runner.groups} == masks
    for group, cache in zip(served.runner.groups, served.runner.caches, strict=True):
        assert cache.shape.num_layers == len(group.layers)
        windowed = group.mask.kind != "full" and len(masks) > 1
        assert cache.num_blocks == (9 * (WINDOW // 4 + 2) + 18 if windowed else 512)


def run(
    driver: Driver, sequences: list[TestSequence], known: list[int], chunk: int = 1 << 30
) -> list[list[int]]:
    """Steps until every sequence has generated STEPS tokens after its ``known`` ones.

    Prompts go in chunks, each sequence joins a step after the one before it, and a token goes from
    a step to the next on the device alone.
    """
    plan = driver.new_plan()
    given = [len(sequence.tokens) for sequence in sequences]
    for sequence in sequences:
        plan.admit(sequence.slot, history=sequence.tokens, prompt_len=len(sequence.tokens))
    step = 0
    while True:
        taken = []
        for index, sequence in enumerate(sequences):
            left = len(sequence.tokens) - sequence.computed
            if step >= index and len(sequence.tokens) < known[index] + STEPS:
                decoding = sequence.computed >= given[index]
                driver.add(plan, sequence, min(left, chunk), from_slot=decoding)
                taken.append(sequence)
        if not taken and step >= len(sequences):
            break
        result = driver.runner.step(plan.build())
        tokens = iter(result.tokens.tolist())
        for sequence, count in zip(taken, result.num_tokens, strict=True):
            sequence.tokens += [next(tokens) for _ in range(count)]
        plan = driver.new_plan()
        step += 1
    driver.runner.step(_retired(plan, sequences).build())
    return [sequence.tokens[count:] for sequence, count in zip(sequences, known, strict=True)]


def _retired(plan: PlanBuilder, sequences: list[TestSequence]) -> PlanBuilder:
    for sequence in sequences:
        plan.retire(sequence.slot)
    return plan


@pytest.mark.parametrize("chunk", [PROMPT, 11, 1], ids=["prefill", "chunked", "decode"])
def test_logits(served: Served, chunk: int) -> None:
    prompt = random_tokens(PROMPT, seed=1)
    served.assert_close(context_logits(served.driver(), prompt, chunk), prompt)


@torch.inference_mode()
def test_logits_into_a_buffer_are_those_that_are_returned(served: Served) -> None:
    """Graphs on a GPU sample from a buffer; scales and caps must be in it."""
    decoder = served.runner.decoder
    assert isinstance(decoder, Decoder)
    shape = (5, decoder.spec.hidden_size)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(decoder.device)
    out = hidden.new_empty((5, decoder.spec.vocab_size), dtype=decoder.logits_dtype)
    decoder.logits_into(hidden, out)
    torch.testing.assert_close(out, decoder.logits(hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [PROMPT, 7], ids=["lone", "chunked"])
def test_greedy_alone(served: Served, chunk: int) -> None:
    prompt = random_tokens(PROMPT, seed=2)
    (generated,) = run(served.driver(), [TestSequence(0, list(prompt))], [PROMPT], chunk)
    served.assert_greedy(prompt, generated)


def test_greedy_in_a_batch(served: Served) -> None:
    lengths = [1, 33, 9, PROMPT, 20]
    prompts = [random_tokens(length, seed=length) for length in lengths]
    sequences = [TestSequence(slot, list(prompt)) for slot, prompt in enumerate(prompts)]
    generated = run(served.driver(), sequences, lengths, chunk=16)
    for prompt, tokens in zip(prompts, generated, strict=True):
        served.assert_greedy(prompt, tokens)


def test_greedy_after_a_reused_prefix(served: Served) -> None:
    driver = served.driver()
    shared = random_tokens(48, seed=5)
    prompts = [shared + random_tokens(length, seed=length) for length in (3, 30)]
    first = TestSequence(0, list(prompts[0]), kept=48 // 4)
    run(driver, [first], [len(prompts[0])])
    second = driver.reuse(1, prompts[1], first, 48)
    (generated,) = run(driver, [second], [len(prompts[1])])
    served.assert_greedy(prompts[1], generated)


def test_greedy_when_preempted(served: Served) -> None:
    """Stopped after 25 tokens, its blocks lost, and computed again from the tokens."""
    driver = served.driver()
    prompt = random_tokens(PROMPT, seed=6)
    (before,) = run(driver, [TestSequence(0, list(prompt))], [PROMPT])
    served.forget()
    resumed = TestSequence(1, prompt + before[:25])
    (after,) = run(driver, [resumed], [PROMPT], chunk=13)
    served.assert_greedy(prompt, after)
