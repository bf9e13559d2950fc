# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The model runner computes what transformers computes, however the work is cut into steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worker_checkpoints import VARIANTS, VOCAB, Reference
from worker_testing import Driver, PlanBuilder, load_runner, logits_of

from slipstream.worker.frames import SeqFlag

CONTEXT = SeqFlag.CONTEXT_LOGITS
SAMPLE = SeqFlag.SAMPLE


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, count).tolist()


def assert_close(ours: np.ndarray, reference: torch.Tensor) -> None:
    assert ours.shape == tuple(reference.shape)
    np.testing.assert_allclose(ours, reference.numpy(), atol=2e-4, rtol=1e-4)


def assert_as_good(ours: np.ndarray, reference: Reference, tokens: list[int]) -> None:
    """In float32: equal. In bfloat16: as near to the float32 result as transformers comes."""
    theirs = reference.logits(tokens)
    if reference.model.dtype is torch.float32:
        assert_close(ours, theirs)
        return
    exact = reference.exact_logits(tokens)
    our_error = np.abs(ours - exact.numpy())
    their_error = np.abs(theirs.numpy() - exact.numpy())
    assert our_error.mean() < 1.5 * their_error.mean() < 0.03 * exact.std()
    assert our_error.max() < 2.5 * their_error.max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_decode_logits(checkpoint, variant):
    reference = checkpoint(variant)
    driver = Driver(load_runner(reference.path))
    tokens = random_tokens(90)
    plan = driver.new_plan()
    sequence = driver.start(plan, 5, tokens)
    driver.add(plan, sequence, 70, flags=CONTEXT)
    rows = list(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
    for _ in range(20):
        driver.add(plan := driver.new_plan(), sequence, 1, flags=CONTEXT)
        rows += list(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
    assert_as_good(np.stack(rows), reference, tokens)


def test_every_chunk_size(checkpoint):
    reference = checkpoint("llama3")
    tokens = random_tokens(37, seed=1)
    expected = reference.logits(tokens)
    driver = Driver(load_runner(reference.path))
    for chunk in range(1, 38):
        plan = driver.new_plan()
        sequence = driver.start(plan, 0, tokens)
        rows: list[np.ndarray] = []
        while sequence.computed < len(tokens):
            count = min(chunk, len(tokens) - sequence.computed)
            driver.add(plan, sequence, count, flags=CONTEXT)
            rows += list(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
            plan = driver.new_plan()
        assert_close(np.stack(rows), expected)
        driver.release(sequence)


def test_chunks_longer_than_a_tile_at_an_offset(checkpoint):
    reference = checkpoint("gqa")
    tokens = random_tokens(900, seed=2)
    driver = Driver(load_runner(reference.path, tokens_per_block=16))
    plan = driver.new_plan()
    sequence = driver.start(plan, 0, tokens)
    rows: list[np.ndarray] = []
    for count in (33, 600, 256, 11):
        driver.add(plan, sequence, count, flags=CONTEXT)
        rows += list(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
        plan = driver.new_plan()
    assert_close(np.stack(rows), reference.logits(tokens))


@pytest.mark.parametrize("variant", ["gqa", "biases", "bf16"])
def test_mixed_batches_in_random_order(checkpoint, variant):
    """12 sequences of 1 to 150 tokens; each step takes random ones by random amounts."""
    reference = checkpoint(variant)
    driver = Driver(load_runner(reference.path), seed=3)
    random = driver.random
    plan = driver.new_plan()
    slots = random.permutation(64)[:12]
    sequences = [
        driver.start(plan, int(slot), random_tokens(int(random.integers(1, 150)), seed=int(slot)))
        for slot in slots
    ]
    rows: dict[int, list[np.ndarray]] = {sequence.slot: [] for sequence in sequences}
    while unfinished := [s for s in sequences if s.computed < len(s.tokens)]:
        random.shuffle(unfinished)
        chosen = unfinished[: int(random.integers(1, len(unfinished) + 1))]
        for sequence in chosen:
            left = len(sequence.tokens) - sequence.computed
            count = 1 if random.random() < 0.6 else int(random.integers(1, left + 1))
            driver.add(plan, sequence, count, flags=CONTEXT)
        for sequence, part in zip(
            chosen, logits_of(driver.runner.step(plan.build()), VOCAB), strict=True
        ):
            rows[sequence.slot] += list(part)
        plan = driver.new_plan()
    for sequence in sequences:
        assert_as_good(np.stack(rows[sequence.slot]), reference, sequence.tokens)


def test_decode_batch_of_very_different_lengths(checkpoint):
    """Lengths 1 to 600 in one decode step: several padded groups."""
    reference = checkpoint("gqa")
    driver = Driver(load_runner(reference.path), seed=4)
    plan = driver.new_plan()
    lengths = [1, 2, 4, 5, 9, 40, 41, 300, 600]
    sequences = [
        driver.start(plan, slot, random_tokens(length, seed=slot))
        for slot, length in enumerate(lengths)
    ]
    for sequence in sequences[1:]:
        driver.add(plan, sequence, len(sequence.tokens) - 1)
    driver.runner.step(plan.build())
    plan = driver.new_plan()
    for sequence in reversed(sequences):
        driver.add(plan, sequence, 1, flags=CONTEXT)
    parts = logits_of(driver.runner.step(plan.build()), VOCAB)
    for sequence, part in zip(reversed(sequences), parts, strict=True):
        assert_close(part, reference.logits(sequence.tokens)[-1:])


def test_a_sequence_attends_to_blocks_that_another_fills_in_the_same_step(checkpoint):
    reference = checkpoint("gqa")
    runner = load_runner(reference.path)
    shared = random_tokens(12, seed=5)
    tails = [random_tokens(5, seed=6), random_tokens(1, seed=7)]
    plan = PlanBuilder()
    for slot in range(3):
        plan.admit(slot)
    # The readers come first in the batch, one as a chunk and one as a single token.
    plan.seq(1, tails[0], 12, [40, 3, 17, 8, 9], CONTEXT)
    plan.seq(2, tails[1], 12, [40, 3, 17, 30], CONTEXT)
    plan.seq(0, shared, 0, [40, 3, 17], CONTEXT)
    parts = logits_of(runner.step(plan.build()), VOCAB)
    assert_close(parts[0], reference.logits(shared + tails[0])[12:])
    assert_close(parts[1], reference.logits(shared + tails[1])[12:])
    assert_close(parts[2], reference.logits(shared))


def test_partial_block_copies(checkpoint):
    reference = checkpoint("gqa")
    runner = load_runner(reference.path)
    first = random_tokens(8, seed=8)
    runner.step(PlanBuilder(1).admit(0).seq(0, first, 0, [5, 6]).build())
    # Shares block 5 and the first three positions of block 6, then goes on by itself.
    second = first[:7] + random_tokens(6, seed=9)
    plan = PlanBuilder(2).retire(0).admit(1).copy(6, 11, 3)
    plan.seq(1, second[7:], 7, [5, 11, 12, 13], CONTEXT)
    parts = logits_of(runner.step(plan.build()), VOCAB)
    assert_close(parts[0], reference.logits(second)[7:])


@pytest.mark.parametrize("chunk", [1 << 30, 5])
def test_stale_values_in_blocks_do_not_matter(checkpoint, chunk):
    reference = checkpoint("gqa")
    runner = load_runner(reference.path)
    runner.caches[0].pool.fill_(float("nan"))
    driver = Driver(runner, seed=10)
    prompts = [random_tokens(n, seed=n) for n in (6, 18, 31)]
    plan = driver.new_plan()
    sequences = [driver.start(plan, slot, prompt) for slot, prompt in enumerate(prompts)]
    while any(s.computed < len(s.tokens) for s in sequences):
        running = [s for s in sequences if s.computed < len(s.tokens)]
        for sequence in running:
            left = len(sequence.tokens) - sequence.computed
            driver.add(plan, sequence, min(chunk, left), flags=CONTEXT)
        for s, part in zip(running, logits_of(runner.step(plan.build()), VOCAB), strict=True):
            expected = reference.logits(s.tokens)[s.computed - len(part) : s.computed]
            assert_close(part, expected)
        plan = driver.new_plan()


@pytest.mark.parametrize("variant", ["gqa", "llama3", "biases", "mha_tied"])
def test_greedy_tokens_equal_generate(checkpoint, variant):
    reference = checkpoint(variant)
    driver = Driver(load_runner(reference.path))
    for length, chunk in ((1, 1), (17, 1 << 30), (50, 7)):
        prompt = random_tokens(length, seed=length)
        expected = reference.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, length:]
        ours, _ = driver.generate(prompt, 64, slot=length, chunk=chunk)
        assert ours == expected.tolist()


def test_retired_slots_start_afresh(checkpoint):
    reference = checkpoint("gqa")
    driver = Driver(load_runner(reference.path))
    prompts = [random_tokens(9, seed=1), random_tokens(20, seed=2)]
    alone = [driver.generate(prompt, 12, slot=slot)[0] for slot, prompt in enumerate(prompts)]
    again = [driver.generate(prompt, 12, slot=33)[0] for prompt in prompts]
    assert alone == again
