# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What sampling remembers of each slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence samples; every value is already checked.

    ``history`` holds the tokens known at admission, ``prompt_len`` of them prompt. ``top_k`` 0,
    ``top_p`` 1 and ``min_p`` 0 mean no limit; ``temperature`` 0 is greedy. ``num_logprobs`` is -1
    for none, 0 for the chosen token's, k for the chosen and the k most likely.
    """

    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_p_decay: float = 1.0
    top_p_min: float = 0.0
    top_p_reset_id: int = -1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_ignore_length: int = 0
    min_tokens: int = 0
    num_logprobs: int = -1
    prompt_len: int = 0
    history: tuple[int, ...] | IntArray = ()
    end_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    bias: tuple[tuple[int, float], ...] = ()


class Feature(IntFlag):
    """What a slot needs beyond temperature and filters, so that the common batch skips it."""

    PENALTIES = 1
    BIAS = 2
    BAD_WORDS = 4
    MIN_TOKENS = 8
    TOP_P_DECAY = 16
    LOGPROBS = 32


# Features that only make tokens impossible.
BANS = Feature.BAD_WORDS | Feature.MIN_TOKENS

# Features that look at earlier tokens.
TRACKING = Feature.PENALTIES | Feature.BAD_WORDS | Feature.TOP_P_DECAY


class TokenCounts:
    """How often each token occurred, as arrays ready for a gather."""

    def __init__(self, tokens: IntArray) -> None:
        ids, counts = np.unique(tokens, return_counts=True)
        self._size = ids.size
        self._ids = np.resize(ids, 2 * ids.size + 32).astype(np.int64)
        self._counts = np.resize(counts, self._ids.size).astype(np.float32)
        self._place = {int(token): place for place, token in enumerate(ids)}

    @property
    def ids(self) -> IntArray:
        return self._ids[: self._size]

    @property
    def counts(self) -> FloatArray:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self._counts[place] += 1
            return
        if self._size == self._ids.size:
            self._ids = np.resize(self._ids, 2 * self._size)
            self._counts = np.resize(self._counts, 2 * self._size)
        self._place[token] = self._size
        self._ids[self._size] = token
        self._counts[self._size] = 1
        self._size += 1


class BadWords:
    """Token sequences that must not be completed."""

    def __init__(self, words: tuple[tuple[int, ...], ...], history: IntArray) -> None:
        self._always = [word[0] for word in words if len(word) == 1]
        # Keyed by the token before the last: most steps match no key.
        self._longer: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                self._longer.setdefault(word[-2], []).append(word)
        self._keep = max((len(word) - 1 for word in words), default=0)
        self._tail = [int(token) for token in history[max(history.size - self._keep, 0) :]]

    def add(self, token: int) -> None:
        self._tail.append(token)
        if len(self._tail) > 2 * self._keep + 64:
            del self._tail[: len(self._tail) - self._keep]

    @property
    def looks_back(self) -> bool:
        """Whether it depends on the tokens before."""
        return bool(self._longer)

    def banned(self) -> list[int]:
        """The tokens that would complete a word now."""
        words = self._longer.get(self._tail[-1], []) if self._tail else []
        ends = [word[-1] for word in words if tuple(self._tail[-(len(word) - 1) :]) == word[:-1]]
        return self._always + ends


@dataclass(slots=True)
class SlotDetails:
    """The rarely used part of a slot. ``decay_steps`` counts tokens since top-p was last whole."""

    params: SamplingParams
    counts: TokenCounts | None = None
    bad_words: BadWords | None = None
    bias_ids: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    bias_values: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))
    decay_steps: int = 0

    def add(self, token: int) -> None:
        if self.counts is not None:
            self.counts.add(token)
        if self.bad_words is not None:
            self.bad_words.add(token)
        self.decay_steps = 0 if token == self.params.top_p_reset_id else self.decay_steps + 1

    def top_p(self) -> float:
        """The nucleus for the next token (factual-nucleus sampling, Lee et al., 2022)."""
        decayed = self.params.top_p * self.params.top_p_decay**self.decay_steps
        return max(decayed, self.params.top_p_min)


class SamplingSlots:
    """Sampling state by slot: plain parameters as arrays, everything else as SlotDetails."""

    def __init__(self, num_slots: int) -> None:
        self.seed = np.zeros(num_slots, np.uint64)
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int64)
        self.top_p = np.ones(num_slots, np.float32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.num_logprobs = np.full(num_slots, -1, np.int64)
        self.features = np.zeros(num_slots, np.uint32)
        # Slots that need more than bans which are known before earlier tokens are.
        self.elaborate = np.zeros(num_slots, np.bool_)
        self.details: list[SlotDetails | None] = [None] * num_slots

    def admit(self, slot: int, params: SamplingParams) -> None:
        """Resets the slot to these parameters."""
        self.seed[slot] = params.seed
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.num_logprobs[slot] = params.num_logprobs
        features = _features(params)
        self.features[slot] = features
        needed = features & ~Feature.LOGPROBS
        details = _details(params, features) if needed else None
        self.details[slot] = details
        words = None if details is None else details.bad_words
        self.elaborate[slot] = bool(features & ~BANS) or (words is not None and words.looks_back)

    def retire(self, slot: int) -> None:
        self.features[slot] = 0
        self.elaborate[slot] = False
        self.details[slot] = None

    def detail(self, slot: int) -> SlotDetails:
        """The details of a slot with a feature that needs them."""
        details = self.details[slot]
        assert details is not None
        return details


def _features(params: SamplingParams) -> Feature:
    penalties = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
    wanted = {
        Feature.PENALTIES: penalties,
        Feature.BIAS: bool(params.bias),
        Feature.BAD_WORDS: bool(params.bad_words),
        Feature.MIN_TOKENS: params.min_tokens > 0 and bool(params.end_ids),
        Feature.TOP_P_DECAY: params.top_p_decay != 1.0 and params.temperature > 0.0,
        Feature.LOGPROBS: params.num_logprobs >= 0,
    }
    features = Feature(0)
    for feature, on in wanted.items():
        features |= feature if on else Feature(0)
    return features


def _details(params: SamplingParams, features: Feature) -> SlotDetails:
    history = np.asarray(params.history, np.int64)
    details = SlotDetails(params)
    if features & Feature.PENALTIES:
        ignored = min(params.prompt_ignore_length, params.prompt_len)
        details.counts = TokenCounts(history[ignored:])
    if features & Feature.BAD_WORDS:
        details.bad_words = BadWords(params.bad_words, history)
    if features & Feature.BIAS:
        details.bias_ids = np.array([token for token, _ in params.bias], np.int64)
        details.bias_values = np.array([value for _, value in params.bias], np.float32)
    if features & Feature.TOP_P_DECAY:
        generated = history[params.prompt_len :]
        resets = np.flatnonzero(generated == params.top_p_reset_id)
        details.decay_steps = int(generated.size - (resets[-1] + 1 if resets.size else 0))
    return details
