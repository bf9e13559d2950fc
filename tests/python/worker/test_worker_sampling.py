# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The sampler on given logits: distributions, penalties, masks and log probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from slipstream.sampling.processors import process_
from slipstream.sampling.rng import uniform
from slipstream.sampling.sampler import sample
from slipstream.sampling.state import SamplingParams, SamplingSlots

VOCAB = 60
DRAWS = 40_000


def random_logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def admitted(*params: SamplingParams) -> tuple[SamplingSlots, np.ndarray]:
    """Slots in reverse order, so that row and slot are never the same number."""
    state = SamplingSlots(len(params) + 1)
    slots = np.arange(len(params), 0, -1)
    for slot, values in zip(slots, params, strict=True):
        state.admit(int(slot), values)
    return state, slots


def sample_one(logits: torch.Tensor, params: SamplingParams, index: int = 0) -> int:
    state, slots = admitted(params)
    return int(sample(logits.clone(), slots, np.array([index]), state).tokens[0])


def masked_out(logits: torch.Tensor, params: SamplingParams, index: int = 0) -> set[int]:
    """Tokens that greedy sampling never takes, found by making each the favourite."""
    favourites = logits.repeat(VOCAB, 1)
    favourites[torch.arange(VOCAB), torch.arange(VOCAB)] = 1e4
    state, slots = admitted(*[params] * VOCAB)
    taken = sample(favourites, slots, np.full(VOCAB, index), state).tokens.tolist()
    return {token for token in range(VOCAB) if taken[token] != token}


def expected_distribution(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The textbook definition, one token at a time, in float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-weights)
    kept = list(order[: top_k or None])
    mass = weights[kept].sum()
    nucleus, total = [], 0.0
    for token in kept:
        nucleus.append(token)
        total += weights[token] / mass
        if total >= top_p:
            break
    kept = [token for token in nucleus if weights[token] >= min_p * weights.max()]
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def assert_distributed(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square at a significance of about 1e-4 (Wilson-Hilferty)."""
    counts = np.bincount(tokens, minlength=probabilities.size)
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * tokens.size
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    some = expected > 0
    statistic = ((observed[some] - expected[some]) ** 2 / expected[some]).sum()
    freedom = max(int(some.sum()) - 1, 1)
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.7, 0, 1.0, 0.0),
    (1.0, 7, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.3, 20, 0.9, 0.05),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 0.0, 0.0),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
@pytest.mark.parametrize("vary", ["seed", "index"])
def test_draws_follow_the_distribution(temperature, top_k, top_p, min_p, vary):
    logits = random_logits(seed=1)
    shared = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rows = 4000
    tokens = []
    for start in range(0, DRAWS, rows):
        numbers = np.arange(start, start + rows)
        seeds = numbers if vary == "seed" else np.full(rows, 1234)
        state, slots = admitted(*[SamplingParams(seed=int(seed), **shared) for seed in seeds])
        index = numbers if vary == "index" else np.zeros(rows, np.int64)
        tokens.append(sample(logits.repeat(rows, 1), slots, index, state).tokens.numpy())
    probabilities = expected_distribution(logits[0].double().numpy(), *shared.values())
    assert_distributed(np.concatenate(tokens), probabilities)


def test_top_p_sorts_the_whole_vocabulary_when_it_must():
    """A flat distribution over 5000 tokens: half of the mass is 2500 tokens."""
    logits = torch.linspace(0.0, 0.1, 5000)[None]
    params = [SamplingParams(seed=s, temperature=1.0, top_p=0.5) for s in range(2000)]
    state, slots = admitted(*params)
    index = np.zeros(2000, np.int64)
    tokens = sample(logits.repeat(2000, 1), slots, index, state).tokens.numpy()
    probabilities = expected_distribution(logits[0].double().numpy(), 1.0, 0, 0.5, 0.0)
    allowed = np.flatnonzero(probabilities)
    assert tokens.min() >= allowed.min()
    assert abs(tokens.mean() - probabilities @ np.arange(5000)) < 3 * 722 / math.sqrt(2000)


def test_equal_weights_at_the_limit_are_all_kept():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    for limit in ({"top_k": 2}, {"top_p": 0.5}):
        drawn = {
            sample_one(logits, SamplingParams(seed=s, temperature=1.0, **limit)) for s in range(200)
        }
        assert drawn == {0, 1, 2, 3}


def test_a_row_depends_on_nothing_but_itself():
    """Every kind of row alone, and the same rows in one batch of 64."""
    logits = random_logits(64, vocab=3000, seed=2)
    params = [
        SamplingParams(
            seed=row * 977,
            temperature=(0.0, 0.7, 1.0, 1.5)[row % 4],
            top_k=(0, 40)[row // 4 % 2],
            top_p=(1.0, 0.9, 0.999)[row // 8 % 3],
            min_p=(0.0, 0.02)[row // 16 % 2],
            repetition_penalty=(1.0, 1.3)[row // 2 % 2],
            history=tuple(range(row, row + 30)),
            bias=((row, 2.0),) if row % 5 == 0 else (),
        )
        for row in range(64)
    ]
    index = np.arange(64) % 9
    state, slots = admitted(*params)
    together = sample(logits.clone(), slots, index, state).tokens.tolist()
    alone = [sample_one(logits[row : row + 1], params[row], int(index[row])) for row in range(64)]
    assert together == alone


def test_uniform_numbers():
    seeds = np.arange(100_000, dtype=np.uint64)
    numbers = uniform(seeds, np.zeros(seeds.size, np.int64))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 0.003
    assert abs(numbers.var() - 1 / 12) < 0.001
    along = uniform(np.full(100_000, 5, np.uint64), np.arange(100_000))
    assert abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 0.012
    # Neighbouring seeds do not walk through the same numbers one step apart.
    neighbour = uniform(np.full(100_000, 6, np.uint64), np.arange(100_000))
    assert np.intersect1d(along, neighbour).size == 0
    # Pinned: a restarted or upgraded worker must draw the same tokens.
    pinned = uniform(np.array([0, 42], np.uint64), np.array([0, 7]))
    assert pinned.tolist() == [0.6524484863740322, 0.7347204584623639]


@pytest.mark.parametrize("penalty", [1.4, 0.7])
def test_repetition_penalty_equals_transformers(penalty):
    history = [3, 3, 9, 40, 3, 59]
    logits = random_logits(seed=3)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits.clone())
    params = SamplingParams(
        repetition_penalty=penalty, history=tuple(history), prompt_len=4, num_logprobs=0
    )
    assert_processed(logits, params, expected)


def test_presence_and_frequency_count_all_tokens_after_the_ignored_prompt():
    history = (5, 5, 6, 7, 6, 8)  # prompt 5 5 6 7, generated 6 8
    logits = random_logits(seed=4)
    expected = logits.clone()
    for token, count in ((6, 2), (7, 1), (8, 1)):
        expected[0, token] -= 0.5 + 0.25 * count
    params = SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=0.25,
        history=history,
        prompt_len=4,
        prompt_ignore_length=2,
    )
    assert_processed(logits, params, expected)


def test_generated_tokens_join_the_penalties():
    logits = torch.zeros(1, VOCAB)
    logits[0, :3] = torch.tensor([1.0, 0.9, 0.65])
    params = SamplingParams(frequency_penalty=0.3)
    state, slots = admitted(params)
    tokens = [int(sample(logits.clone(), slots, np.array([i]), state).tokens[0]) for i in range(6)]
    assert tokens == [0, 1, 0, 2, 1, 0]


def assert_processed(logits: torch.Tensor, params: SamplingParams, expected: torch.Tensor) -> None:
    state, slots = admitted(params)
    ours = logits.clone()
    process_(ours, slots, np.zeros(1, np.int64), state)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_bias_adds_to_logits_and_repeats_add_up():
    logits = random_logits(seed=5)
    expected = logits.clone()
    expected[0, 4] += 1.5
    expected[0, 9] += -3.0 + 0.5
    assert_processed(logits, SamplingParams(bias=((4, 1.5), (9, -3.0), (9, 0.5))), expected)


def test_bad_words_equal_transformers():
    words = ((4,), (7, 8), (1, 2, 3), (2, 9), (5, 1, 2, 3, 6))
    for history in ([7], [1, 2], [5, 1, 2, 3], [2], [8, 30], [1]):
        logits = random_logits(seed=6)
        # Behind a token of no word: some releases overlook a word with no token before it.
        expected = NoBadWordsLogitsProcessor([list(w) for w in words], eos_token_id=0)(
            torch.tensor([[VOCAB - 1, *history]]), logits.clone()
        )
        params = SamplingParams(bad_words=words, history=tuple(history), prompt_len=len(history))
        assert_processed(logits, params, expected)


def test_bad_words_look_across_generated_tokens():
    logits = torch.zeros(1, VOCAB)
    logits[0, [1, 2, 3]] = torch.tensor([3.0, 2.0, 1.0])
    params = SamplingParams(bad_words=((1, 1), (1, 2, 1)), history=(9,), prompt_len=1)
    state, slots = admitted(params)
    tokens = [
        int(sample(logits.clone(), slots, np.array([i]), state).tokens[0]) for i in range(300)
    ]
    assert tokens[:6] == [1, 2, 2, 1, 2, 2]
    assert "1, 1" not in str(tokens)
    assert "1, 2, 1" not in str(tokens)


@pytest.mark.parametrize("index", [0, 2, 3, 50])
def test_min_tokens_equals_transformers(index):
    logits = random_logits(seed=7)
    processor = MinNewTokensLengthLogitsProcessor(5, 3, [2, 7])
    theirs = processor(torch.zeros(1, 5 + index, dtype=torch.long), logits.clone())
    expected = set(torch.isneginf(theirs[0]).nonzero()[:, 0].tolist())
    params = SamplingParams(min_tokens=3, end_ids=(2, 7))
    assert masked_out(logits, params, index) == expected


def test_top_p_decay():
    """p, p*d, p*d^2 ... down to the floor, whole again after the reset token."""
    state, slots = admitted(
        SamplingParams(temperature=1.0, top_p=0.9, top_p_decay=0.5, top_p_min=0.2, top_p_reset_id=4)
    )
    detail = state.detail(int(slots[0]))
    seen = []
    for token in (1, 1, 1, 4, 1, 4, 4, 1):
        seen.append(detail.top_p())
        detail.add(token)
    np.testing.assert_allclose(seen, [0.9, 0.45, 0.225, 0.2, 0.9, 0.45, 0.9, 0.9])


@pytest.mark.parametrize(
    ("generated", "top_p"), [((), 0.8), ((1, 1), 0.2), ((1, 4), 0.8), ((4, 1, 1), 0.2)]
)
def test_top_p_decay_resumes_from_the_history(generated, top_p):
    params = SamplingParams(
        temperature=1.0,
        top_p=0.8,
        top_p_decay=0.5,
        top_p_reset_id=4,
        history=(4, 4, *generated),
        prompt_len=2,
    )
    state, slots = admitted(params)
    assert state.detail(int(slots[0])).top_p() == pytest.approx(top_p)


def test_a_decayed_nucleus_is_what_is_drawn_from():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    base = {"temperature": 1.0, "top_p": 0.95, "top_p_decay": 0.6, "prompt_len": 0}
    for generated, allowed in (((), {0, 1, 2, 3}), ((0,), {0, 1}), ((0, 0), {0})):
        drawn = {
            sample_one(logits, SamplingParams(seed=s, history=generated, **base))
            for s in range(300)
        }
        assert drawn == allowed


def test_logprobs_are_of_the_unprocessed_logits():
    logits = random_logits(4, seed=8)
    reference = torch.log_softmax(logits.double(), -1)
    params = [
        SamplingParams(num_logprobs=-1),
        SamplingParams(num_logprobs=0, bias=((11, 100.0),)),
        SamplingParams(num_logprobs=5, temperature=2.0, seed=3, presence_penalty=1.0),
        SamplingParams(num_logprobs=2),
    ]
    state, slots = admitted(*params)
    sampled = sample(logits.clone(), slots, np.zeros(4, np.int64), state)
    assert sampled.logprobs.width.tolist() == [0, 1, 6, 3]
    assert int(sampled.tokens[1]) == 11
    starts = np.cumsum([0, 0, 1, 6])
    for row, start, width in zip(range(1, 4), starts[1:], (1, 6, 3), strict=True):
        ids = sampled.logprobs.ids[start : start + width]
        values = sampled.logprobs.values[start : start + width]
        assert ids[0] == int(sampled.tokens[row])
        assert ids[1:].tolist() == reference[row].topk(width - 1).indices.tolist()
        np.testing.assert_allclose(values, reference[row][torch.from_numpy(ids)], atol=1e-4)


def test_logprobs_of_all_tokens_sum_to_one():
    state, slots = admitted(SamplingParams(num_logprobs=VOCAB + 5))
    sampled = sample(random_logits(seed=9), slots, np.zeros(1, np.int64), state)
    assert sampled.logprobs.width.tolist() == [VOCAB + 1]
    assert np.exp(sampled.logprobs.values[1:].astype(np.float64)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_are_reported_and_disturb_nobody(bad):
    logits = random_logits(3, seed=10)
    params = [SamplingParams(temperature=1.0, seed=s, num_logprobs=1) for s in range(3)]
    state, slots = admitted(*params)
    healthy = sample(logits.clone(), slots, np.zeros(3, np.int64), state)
    logits[1, 17] = bad
    state, slots = admitted(*params)
    sampled = sample(logits, slots, np.zeros(3, np.int64), state)
    assert sampled.finite.tolist() == [True, False, True]
    assert sampled.tokens[[0, 2]].tolist() == healthy.tokens[[0, 2]].tolist()


def test_extreme_temperatures():
    logits = random_logits(seed=11)
    best = int(logits.argmax())
    assert sample_one(logits, SamplingParams(temperature=1e-30, seed=5)) == best
    many = {sample_one(logits, SamplingParams(temperature=1e9, seed=s)) for s in range(1000)}
    assert len(many) == VOCAB
