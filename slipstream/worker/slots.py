# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a worker remembers between steps: block tables, last tokens and sampling state by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from slipstream.sampling.state import SamplingParams, SamplingSlots
from slipstream.worker.frames import AdmitFlag, Int32Array, StepPlan

IntArray = npt.NDArray[np.int64]


SLOTS_PER_SEQ = 2
"""A sequence that has ended, or that gives way, keeps its slot until the steps in flight that name
it have answered; meanwhile another one takes its place in the steps that follow."""


class PlanError(ValueError):
    """A plan that contradicts the plans before it or the model's limits."""


@dataclass(frozen=True, slots=True)
class BlockEntries:
    """What a step adds to block tables: entry ``entries[i]`` of slot ``slots[i]``."""

    slots: IntArray
    entries: IntArray
    block_ids: Int32Array  # [groups, entries]


class SlotTable:
    """All slots, ``SLOTS_PER_SEQ`` for each sequence of a step, each with blocks for up to
    ``max_seq_len`` tokens.

    ``block_tables``: ``[groups, slots, blocks]``, one table a KV group. What a window has passed
    stays in its table although it belongs to others: masks keep it from being read. ``appended``:
    what the last plan added. ``last_token`` has one entry more, which is nobody's.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_seq_len: int,
        tokens_per_block: int,
        device: torch.device,
        num_groups: int = 1,
    ) -> None:
        self.tokens_per_block = tokens_per_block
        max_blocks = -(-max_seq_len // tokens_per_block)
        num_slots = SLOTS_PER_SEQ * max_num_seqs
        self.max_num_seqs = max_num_seqs
        self.block_tables = np.zeros((num_groups, num_slots, max_blocks), np.int32)
        self.num_blocks = np.zeros(num_slots, np.int64)
        self.admitted = np.zeros(num_slots, np.bool_)
        self.prompt_len = np.zeros(num_slots, np.int64)
        self.generation_logits = np.zeros(num_slots, np.bool_)
        self.last_token = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self.appended: BlockEntries | None = None
        self.sampling = SamplingSlots(num_slots)

    def apply(self, plan: StepPlan) -> IntArray:
        """Retires, admits and appends new blocks; returns the plan's slots as int64.

        Raises PlanError for more sequences than a step may have, for slots out of range or not
        admitted, and for block tables that do not cover the positions of the step.
        """
        for slot in plan.retired.tolist():
            self._check_range(slot)
            self.admitted[slot] = False
            self.sampling.retire(slot)
        for record in plan.admitted:
            self._admit(record, plan.aux)
        slots = plan.slot.astype(np.int64)
        if slots.size > self.max_num_seqs:
            raise PlanError(
                f"step {plan.step_id} has {slots.size} sequences, max_num_seqs is "
                f"{self.max_num_seqs}"
            )
        if slots.size and slots.max() >= self.admitted.size:
            self._check_range(int(slots.max()))
        if not self.admitted[slots].all():
            missing = slots[~self.admitted[slots]].tolist()
            raise PlanError(f"step {plan.step_id} names slots {missing}, which are not admitted")
        self.append_blocks(plan, slots)
        return slots

    def _admit(self, record: np.void, aux: Int32Array) -> None:
        slot = int(record["slot"])
        self._check_range(slot)
        self.admitted[slot] = True
        self.num_blocks[slot] = 0
        self.prompt_len[slot] = record["prompt_len"]
        self.generation_logits[slot] = bool(int(record["flags"]) & AdmitFlag.GENERATION_LOGITS)
        self.sampling.admit(slot, sampling_params(record, aux))

    def append_blocks(self, plan: StepPlan, slots: IntArray) -> None:
        """The part of ``apply`` that comes after slots were admitted. slots: the plan's."""
        self.appended = None
        if np.count_nonzero(plan.num_new_blocks):
            self._append_blocks(plan, slots)
        ends = np.add(plan.first_position, plan.num_tokens, dtype=np.int64)
        beyond = ends > self.num_blocks[slots] * self.tokens_per_block
        if np.count_nonzero(beyond):
            short = slots[beyond].tolist()
            raise PlanError(f"step {plan.step_id}: blocks of slots {short} do not cover its tokens")

    def _append_blocks(self, plan: StepPlan, slots: IntArray) -> None:
        which = plan.num_new_blocks.nonzero()[0]  # few, when all decode
        slots, counts = slots[which], plan.num_new_blocks[which].astype(np.int64)
        held = self.num_blocks[slots]
        total = held + counts
        num_groups, _, most = self.block_tables.shape
        if plan.num_groups != num_groups:
            raise PlanError(
                f"step {plan.step_id} has {plan.num_groups} KV groups, the model {num_groups}"
            )
        if total.max() > most:
            raise PlanError(
                f"step {plan.step_id} gives a slot {total.max()} blocks, the longest sequence "
                f"needs {most}"
            )
        ids = plan.new_block_ids.reshape(num_groups, -1)
        owners, entry = slots, held
        if counts.max() > 1:
            owners = slots.repeat(counts)
            entry = np.arange(owners.size) - (counts.cumsum() - counts - held).repeat(counts)
        self.block_tables[:, owners, entry] = ids
        self.appended = BlockEntries(owners, entry, ids)
        self.num_blocks[slots] = total

    def _check_range(self, slot: int) -> None:
        if slot >= self.admitted.size:
            raise PlanError(f"slot {slot} is out of range, there are {self.admitted.size}")


def sampling_params(record: np.void, aux: Int32Array) -> SamplingParams:
    """An AdmitRecord, with its lists in the plan's aux array, as SamplingParams."""

    def part(name: str) -> Int32Array:
        start = int(record[f"{name}_offset"])
        return aux[start : start + int(record[f"{name}_len"])]

    bias = part("bias").reshape(-1, 2)
    values = np.ascontiguousarray(bias[:, 1]).view(np.float32)
    return SamplingParams(
        seed=int(record["seed"]),
        temperature=float(record["temperature"]),
        top_k=int(record["top_k"]),
        top_p=float(record["top_p"]),
        min_p=float(record["min_p"]),
        top_p_decay=float(record["top_p_decay"]),
        top_p_min=float(record["top_p_min"]),
        top_p_reset_id=int(record["top_p_reset_id"]),
        repetition_penalty=float(record["repetition_penalty"]),
        presence_penalty=float(record["presence_penalty"]),
        frequency_penalty=float(record["frequency_penalty"]),
        prompt_ignore_length=int(record["prompt_ignore_length"]),
        min_tokens=int(record["min_tokens"]),
        num_logprobs=int(record["num_logprobs"]),
        prompt_len=int(record["prompt_len"]),
        history=part("history").astype(np.int64),
        end_ids=tuple(part("end_ids").tolist()),
        bad_words=_words(part("bad_words").tolist()),
        bias=tuple(zip(bias[:, 0].tolist(), values.tolist(), strict=True)),
    )


def _words(packed: list[int]) -> tuple[tuple[int, ...], ...]:
    """Unpacks n, then n times: length, tokens."""
    words: list[tuple[int, ...]] = []
    start = 1
    for _ in range(packed[0] if packed else 0):
        length = packed[start]
        words.append(tuple(packed[start + 1 : start + 1 + length]))
        start += 1 + length
    return tuple(words)
