# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker whose model is a hash, and whose KV cache is checked cell by cell.

A position's cell is a function of its token and of every earlier cell that some KV group lets it
see, read from that group's own blocks; the next token is a function of the last cell. So any block
that is shared wrongly, overwritten, lost, given away too early or read before it was filled changes
the output; and the output that a sequence must have is known without any scheduler.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream import _core

TOKEN_FROM_SLOT = -1
SAMPLE = 1

Groups = Sequence[_core.KvGroup]


def new_cell(token: int, seen: Sequence[Sequence[int]]) -> int:
    """``seen``: of each group, the cells before the token's that it sees."""
    numbers = [token, *(sum(cells) * 3 + len(cells) for cells in seen)]
    return zlib.crc32(str(numbers).encode())


def next_token(cell: int, vocab: int) -> int:
    return zlib.crc32(str(cell).encode()) % vocab


def expected_output(
    prompt: Sequence[int], count: int, vocab: int, groups: Groups, end_id: int = -1
) -> list[int]:
    """The tokens that a sequence generates, the end id left out."""
    cells: list[int] = []

    def take(token: int) -> int:
        position = len(cells)
        cells.append(new_cell(token, [cells[g.first_visible(position) :] for g in groups]))
        return next_token(cells[-1], vocab)

    output: list[int] = []
    token = [take(token) for token in prompt][-1]
    while len(output) < count and token != end_id:
        output.append(token)
        token = take(token)
    return output


@dataclass
class Slot:
    tables: list[list[int]]  # by group
    computed: int = 0
    last_sampled: int | None = None


class ModelWorker:
    """Applies plans strictly; AssertionError on any plan that breaks the contract of step.h."""

    def __init__(self, groups: Groups, tokens_per_block: int, vocab: int) -> None:
        self.groups = list(groups)
        self.block_size = tokens_per_block
        self.vocab = vocab
        self.pools: list[list[list[int | None]]] = [
            [[None] * tokens_per_block for _ in range(group.num_blocks)] for group in groups
        ]
        self.slots: dict[int, Slot] = {}
        self.last_step = 0

    def run(self, plan: _core.StepPlan) -> _core.StepResult:
        assert plan.step_id > self.last_step
        assert plan.num_groups == len(self.groups)
        self.last_step = plan.step_id
        for slot in plan.retired:
            assert slot in self.slots, "retired a slot that was not admitted"
            del self.slots[slot]
        for slot in plan.admitted_slots:
            assert slot not in self.slots, "admitted a slot twice"
            self.slots[slot] = Slot([[] for _ in self.groups])
        for src, dst, n, group in plan.copies:
            assert 0 < n < self.block_size
            source = self.pools[group][src][:n]
            assert None not in source, "copied cells that were never filled"
            self.pools[group][dst][:n] = source
        self._append_blocks(plan)
        return self._sample(plan, self._compute(plan))

    def _append_blocks(self, plan: _core.StepPlan) -> None:
        assert len(set(plan.slot)) == len(plan.slot)
        ids = iter(plan.new_block_ids)
        for group in range(len(self.groups)):
            for slot, grown in zip(plan.slot, plan.num_new_blocks, strict=True):
                self.slots[slot].tables[group] += [next(ids) for _ in range(grown)]
        assert next(ids, None) is None

    def _compute(self, plan: _core.StepPlan) -> list[int]:
        """Fills the cells of every chunk; of each sequence the last."""
        tokens, chunks = iter(plan.token_ids), []
        for slot_id, n, first in zip(plan.slot, plan.num_tokens, plan.first_position, strict=True):
            slot = self.slots[slot_id]
            if slot.computed == 0:
                slot.computed = first  # reused from the cache
            assert first >= slot.computed, "a position is computed twice"
            assert n >= 1
            assert first + n <= len(slot.tables[0]) * self.block_size, "positions without blocks"
            chunks.append((first, slot_id, [next(tokens) for _ in range(n)]))
        assert next(tokens, None) is None
        last = {}
        # A chunk may continue from cells that another one of this step fills: that starts earlier.
        for first, slot_id, chunk in sorted(chunks):
            slot = self.slots[slot_id]
            for position, token in enumerate(chunk, first):
                last[slot_id] = self._fill(slot, position, token)
            slot.computed = first + len(chunk)
        return [last[slot] for slot in plan.slot]

    def _fill(self, slot: Slot, position: int, token: int) -> int:
        if token == TOKEN_FROM_SLOT:
            assert slot.last_sampled is not None
            token = slot.last_sampled
        seen = [
            [self._cell(slot, i, p) for p in range(group.first_visible(position), position)]
            for i, group in enumerate(self.groups)
        ]
        cell = new_cell(token, seen)
        index, offset = divmod(position, self.block_size)
        for table, pool in zip(slot.tables, self.pools, strict=True):
            assert table[index] >= 0, "a position is computed that has no block"
            pool[table[index]][offset] = cell
        return cell

    def _cell(self, slot: Slot, group: int, position: int) -> int:
        index, offset = divmod(position, self.block_size)
        block = slot.tables[group][index]
        assert block >= 0, "a position is seen that has no block"
        cell = self.pools[group][block][offset]
        assert cell is not None, "attended to a cell that was never filled"
        return cell

    def _sample(self, plan: _core.StepPlan, last_cells: list[int]) -> _core.StepResult:
        result = _core.StepResult()
        result.step_id = plan.step_id
        result.slot = list(plan.slot)
        n = len(plan.slot)
        result.status = [0] * n
        samples = [bool(flags & SAMPLE) for flags in plan.flags]
        sampled = []
        for slot, cell, wanted in zip(plan.slot, last_cells, samples, strict=True):
            if wanted:
                sampled.append(next_token(cell, self.vocab))
                self.slots[slot].last_sampled = sampled[-1]
        result.num_tokens = [int(wanted) for wanted in samples]
        result.tokens = sampled
        result.logprob_width = [0] * n
        result.context_rows = [0] * n
        result.generation_rows = [0] * n
        return result
