# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Applies step plans to a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slipstream.attention.interface import AttentionBackend, BatchLayout
from slipstream.attention.kv_cache import KvCache
from slipstream.attention.kv_scale import KvScale
from slipstream.attention.paged_rows import PagedRows
from slipstream.attention.paged_sdpa import PagedSdpa
from slipstream.layers.rows import RowKernels
from slipstream.models.decoder import Decoder
from slipstream.models.kv_groups import KvGroup
from slipstream.models.served import ServedModel
from slipstream.sampling.sampler import Sampled, sample, sample_apart
from slipstream.worker.frames import TOKEN_FROM_SLOT, SeqFlag, SeqStatus, StepPlan, StepResult
from slipstream.worker.slots import SlotTable

IntArray = npt.NDArray[np.int64]
LogitsOf = Callable[[IntArray], torch.Tensor]
"""Rows of the logits that a step can have to float32 ``[rows, vocab]``, the caller's to change."""

_LOGIT_ROWS = 512


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which hidden states of a step become logits, in this order.

    Sequence by sequence: every position of the chunk if it wants context logits, else its last
    position if it samples, else nothing.
    """

    hidden_rows: IntArray
    sampled_seqs: IntArray  # sequences that sample
    sampled_rows: IntArray  # their rows among the logits
    context_rows: IntArray  # [seqs] rows of context logits, at context_starts among the logits
    context_starts: IntArray

    @classmethod
    def of(cls, num_tokens: IntArray, flags: npt.NDArray[np.uint32]) -> LogitRows:
        samples = (flags & SeqFlag.SAMPLE) != 0
        if samples.all() and num_tokens.max(initial=0) == 1:  # one row each, whatever else it wants
            each = np.arange(samples.size)
            context = ((flags & SeqFlag.CONTEXT_LOGITS) != 0).astype(np.int64)
            return cls(each, each, each, context, each)
        context = np.where(flags & SeqFlag.CONTEXT_LOGITS, num_tokens, 0)
        counts = np.where(context, context, samples)
        ends = np.cumsum(counts)
        last_tokens = np.cumsum(num_tokens) - 1
        back = np.repeat(ends, counts) - np.arange(counts.sum()) - 1
        seqs = np.flatnonzero(samples)
        return cls(
            hidden_rows=np.repeat(last_tokens, counts) - back,
            sampled_seqs=seqs,
            sampled_rows=ends[seqs] - 1,
            context_rows=context,
            context_starts=ends - counts,
        )


def add_tokens(
    result: StepResult, rows: LogitRows, tokens: npt.NDArray[Any], finite: npt.NDArray[np.bool_]
) -> None:
    """What was sampled, one token for each of ``rows.sampled_seqs``, or that its logits were not
    finite."""
    seqs = rows.sampled_seqs
    result.status[seqs] = np.where(finite, SeqStatus.OK, SeqStatus.NON_FINITE)
    result.num_tokens[seqs] = finite
    result.tokens = tokens[finite].astype(np.int32)


class PendingStep:
    """A step that was enqueued. ``done`` never waits; ``result`` does, and is called once."""

    def __init__(self, done: Callable[[], bool], result: Callable[[], StepResult]) -> None:
        self.done = done
        self.result = result

    @classmethod
    def of(cls, result: StepResult) -> PendingStep:
        """One that is done already."""
        return cls(lambda: True, lambda: result)


class ModelRunner:
    """A loaded model with its KV caches and slots: everything of a worker but the connection.

    ``caches``: one for each of ``groups``. ``kv_scales``: layer by layer, for FP8 caches alone.
    ``expert_load`` counts from now on what each expert computes; None without experts. ``rows``:
    for a decoder whose tokens must not depend on the others of a batch, else None.
    """

    def __init__(
        self,
        decoder: ServedModel,
        groups: Sequence[KvGroup],
        caches: Sequence[KvCache],
        *,
        max_num_seqs: int,
        max_seq_len: int,
        kv_scales: Sequence[KvScale] | None = None,
        rows: RowKernels | None = None,
    ) -> None:
        self.decoder = decoder
        self.groups = tuple(groups)
        self.caches = tuple(caches)
        self.kv_scales = kv_scales
        self.rows = rows
        self.max_seq_len = max_seq_len
        self.device = decoder.device
        self.expert_load = decoder.expert_load() if isinstance(decoder, Decoder) else None
        self._slots = SlotTable(
            max_num_seqs,
            max_seq_len,
            self.caches[0].shape.tokens_per_block,
            decoder.device,
            num_groups=len(self.groups),
        )

    @cached_property
    def _attention(self) -> AttentionBackend:
        spec = self.decoder.spec
        layers = [group.layers for group in self.groups]
        if self.rows is not None:
            return PagedRows(self.rows, self.caches, layers, spec.num_heads, spec.scores)
        return PagedSdpa(
            self.caches,
            layers,
            spec.num_heads,
            spec.scores,
            dtype=self.decoder.dtype,
            scales=self.kv_scales,
        )

    def step(self, plan: StepPlan) -> StepResult:
        """Applies one plan and returns its result."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Applies one plan.

        In this order: retired and admitted slots, new blocks, block copies, forward, sampling.
        Plans must come in the order of their step ids; the next one may be launched before the
        result of this one is taken. Raises PlanError for a plan that contradicts the ones before
        it; the runner must not be used after an exception.
        """
        slots = self._apply(plan)
        start_ns = time.monotonic_ns()
        num_tokens = plan.num_tokens.astype(np.int64)
        rows = LogitRows.of(num_tokens, plan.flags)
        logits_of, sampled = None, None
        if slots.size:
            hidden = self._forward(plan, slots, num_tokens, rows)
            if rows.hidden_rows.size:
                logits_of = self._logits_of(hidden, rows)
                sampled = self._sample(logits_of, plan, slots, num_tokens, rows)
        result = self._result(plan, slots, rows, logits_of, sampled)
        result.start_ns, result.end_ns = start_ns, time.monotonic_ns()
        return PendingStep.of(result)

    def _apply(self, plan: StepPlan) -> IntArray:
        """All of a plan that comes before its forward; returns its slots."""
        slots = self._slots.apply(plan)
        for copy in plan.copies:
            cache = self.caches[int(copy["group"])]
            cache.copy_block(int(copy["src"]), int(copy["dst"]), int(copy["num_tokens"]))
        return slots

    def _forward(
        self, plan: StepPlan, slots: IntArray, num_tokens: IntArray, rows: LogitRows
    ) -> torch.Tensor:
        """The hidden states of ``rows.hidden_rows``; of any row if there are none."""
        first = plan.first_position.astype(np.int64)
        sequence = np.repeat(np.arange(slots.size), num_tokens)
        shift = first - np.cumsum(num_tokens) + num_tokens
        positions = np.arange(sequence.size) + shift[sequence]
        used = int(self._slots.num_blocks[slots].max())
        tables = self._slots.block_tables[:, slots, :used]
        attention = self._attention.plan(BatchLayout(num_tokens, first, tables))
        token_ids = self._token_ids(plan, slots, sequence)
        needed = rows.hidden_rows if rows.hidden_rows.size else np.zeros(1, np.int64)
        kept = self._tensor(needed) if needed.size < positions.size else None
        return self.decoder(token_ids, self._tensor(positions), attention, kept)

    def _token_ids(self, plan: StepPlan, slots: IntArray, sequence: IntArray) -> torch.Tensor:
        token_ids = self._tensor(plan.token_ids.astype(np.int64))
        from_slot = np.flatnonzero(plan.token_ids == TOKEN_FROM_SLOT)
        if from_slot.size:
            last = self._slots.last_token[self._tensor(slots[sequence[from_slot]])]
            token_ids[self._tensor(from_slot)] = last
        return token_ids

    def _logits_of(self, hidden: torch.Tensor, rows: LogitRows) -> LogitsOf:
        """hidden: of ``rows.hidden_rows``, or of the whole step."""
        if rows.hidden_rows.size != hidden.shape[0]:
            hidden = hidden[self._tensor(rows.hidden_rows)]

        def logits(wanted: IntArray) -> torch.Tensor:
            every = wanted.size == hidden.shape[0] and (np.diff(wanted) == 1).all()
            return self.decoder.logits(hidden if every else hidden[self._tensor(wanted)])

        return logits

    def _sample(
        self,
        logits_of: LogitsOf,
        plan: StepPlan,
        slots: IntArray,
        num_tokens: IntArray,
        rows: LogitRows,
    ) -> Sampled | None:
        seqs = rows.sampled_seqs
        if not seqs.size:
            return None
        chosen = slots[seqs]
        index = self._generated(plan, slots, num_tokens, rows)
        logits = logits_of(rows.sampled_rows)
        draw = sample if self.rows is None else sample_apart
        sampled = draw(logits, chosen, index, self._slots.sampling)
        self._slots.last_token[self._tensor(chosen)] = sampled.tokens
        return sampled

    def _generated(
        self, plan: StepPlan, slots: IntArray, num_tokens: IntArray, rows: LogitRows
    ) -> IntArray:
        """How many tokens each sequence that samples has generated before."""
        seqs = rows.sampled_seqs
        known = plan.first_position[seqs] + num_tokens[seqs]
        generated: IntArray = known - self._slots.prompt_len[slots[seqs]]
        return generated

    def _result(
        self,
        plan: StepPlan,
        slots: IntArray,
        rows: LogitRows,
        logits_of: LogitsOf | None,
        sampled: Sampled | None,
    ) -> StepResult:
        nothing = np.zeros(slots.size, np.uint32)
        result = StepResult(
            step_id=plan.step_id,
            start_ns=0,
            end_ns=0,
            slot=plan.slot.copy(),
            status=nothing.copy(),
            num_tokens=nothing.copy(),
            logprob_width=nothing.copy(),
            context_rows=rows.context_rows.astype(np.uint32),
            generation_rows=nothing,
            tokens=np.empty(0, np.int32),
        )
        if sampled is not None:
            self._add_sampled(result, slots, rows, sampled)
        if logits_of is not None:
            result.logits = self._kept_logits(result, rows, logits_of)
        return result

    def _add_sampled(
        self, result: StepResult, slots: IntArray, rows: LogitRows, sampled: Sampled
    ) -> None:
        seqs, finite = rows.sampled_seqs, sampled.finite
        add_tokens(result, rows, sampled.tokens.cpu().numpy(), finite)
        width = sampled.logprobs.width
        kept = np.repeat(finite, width)
        result.logprob_width[seqs] = np.where(finite, width, 0)
        result.logprob_ids = sampled.logprobs.ids[kept]
        result.logprob_values = sampled.logprobs.values[kept]
        result.generation_rows[seqs] = self._slots.generation_logits[slots[seqs]] & finite

    def _kept_logits(
        self, result: StepResult, rows: LogitRows, logits_of: LogitsOf
    ) -> npt.NDArray[np.float32]:
        """Per sequence, its context rows and then the row it sampled from, flat."""
        generation = result.generation_rows.astype(np.int64)
        counts = rows.context_rows + generation
        if not counts.any():
            return np.empty(0, np.float32)
        picked: list[IntArray] = []
        sampled_row = np.zeros(counts.size, np.int64)
        sampled_row[rows.sampled_seqs] = rows.sampled_rows
        for seq in np.flatnonzero(counts):
            start = rows.context_starts[seq]
            picked.append(np.arange(start, start + rows.context_rows[seq]))
            picked.append(np.repeat(sampled_row[seq], generation[seq]))
        wanted = np.concatenate(picked)
        kept = np.empty((wanted.size, self.decoder.spec.vocab_size), np.float32)
        # A few at a time: those of a whole step may be more than the memory that is left.
        for start in range(0, wanted.size, _LOGIT_ROWS):
            part = wanted[start : start + _LOGIT_ROWS]
            kept[start : start + part.size] = logits_of(part).cpu().numpy()
        return kept.reshape(-1)

    def _tensor(self, values: IntArray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)
