# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker whose model is a hash, and whose KV cache is checked cell by cell.

The next token is a function of every token that the sequence's block table holds, so any block that
is shared wrongly, overwritten, lost or read before it was filled changes the output; and the output
that a sequence must have is known without any scheduler.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from slipstream import _core

TOKEN_FROM_SLOT = -1
SAMPLE = 1


def next_token(tokens: Sequence[int], vocab: int) -> int:
    return zlib.crc32(bytes(str(list(tokens)), "ascii")) % vocab


def expected_output(prompt: Sequence[int], count: int, vocab: int, end_id: int = -1) -> list[int]:
    """The tokens that a sequence generates, the end id left out."""
    tokens = list(prompt)
    for _ in range(count):
        token = next_token(tokens, vocab)
        if token == end_id:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@dataclass
class Slot:
    table: list[int] = field(default_factory=list)
    computed: int = 0
    last_sampled: int | None = None


class ModelWorker:
    """Applies plans strictly; AssertionError on any plan that breaks the contract of step.h."""

    def __init__(self, num_blocks: int, tokens_per_block: int, vocab: int) -> None:
        self.block_size = tokens_per_block
        self.vocab = vocab
        self.blocks: list[list[int | None]] = [[None] * tokens_per_block for _ in range(num_blocks)]
        self.slots: dict[int, Slot] = {}
        self.last_step = 0

    def run(self, plan: _core.StepPlan) -> _core.StepResult:
        assert plan.step_id > self.last_step
        self.last_step = plan.step_id
        for slot in plan.retired:
            assert slot in self.slots, "retired a slot that was not admitted"
            del self.slots[slot]
        for slot in plan.admitted_slots:
            assert slot not in self.slots, "admitted a slot twice"
            self.slots[slot] = Slot()
        for src, dst, n in plan.copies:
            assert 0 < n < self.block_size
            source = self.blocks[src][:n]
            assert None not in source, "copied cells that were never filled"
            self.blocks[dst][:n] = source
        chunks = self._write(plan)
        return self._sample(plan, chunks)

    def _write(self, plan: _core.StepPlan) -> list[tuple[int, int]]:
        tokens, new_blocks = list(plan.token_ids), list(plan.new_block_ids)
        chunks = []
        assert len(set(plan.slot)) == len(plan.slot)
        for slot_id, n, first, grown in zip(
            plan.slot, plan.num_tokens, plan.first_position, plan.num_new_blocks, strict=True
        ):
            slot = self.slots[slot_id]
            slot.table += new_blocks[:grown]
            del new_blocks[:grown]
            if slot.computed == 0:
                slot.computed = first  # reused from the cache
            assert first >= slot.computed, "a position is computed twice"
            assert n >= 1
            assert first + n <= len(slot.table) * self.block_size, "positions without blocks"
            for position in range(first, first + n):
                token = tokens.pop(0)
                if token == TOKEN_FROM_SLOT:
                    assert slot.last_sampled is not None
                    token = slot.last_sampled
                cell = slot.table[position // self.block_size]
                self.blocks[cell][position % self.block_size] = token
            slot.computed = first + n
            chunks.append((slot_id, first + n))
        assert not tokens
        assert not new_blocks
        return chunks

    def _sample(self, plan: _core.StepPlan, chunks: list[tuple[int, int]]) -> _core.StepResult:
        result = _core.StepResult()
        result.step_id = plan.step_id
        result.slot = list(plan.slot)
        n = len(plan.slot)
        result.status = [0] * n
        sampled, counts = [], []
        for (slot_id, end), flags in zip(chunks, plan.flags, strict=True):
            slot = self.slots[slot_id]
            seen = [
                self.blocks[slot.table[p // self.block_size]][p % self.block_size]
                for p in range(end)
            ]
            assert None not in seen, "attended to a cell that was never filled"
            counts.append(1 if flags & SAMPLE else 0)
            if flags & SAMPLE:
                slot.last_sampled = next_token([t for t in seen if t is not None], self.vocab)
                sampled.append(slot.last_sampled)
        result.num_tokens = counts
        result.tokens = sampled
        result.logprob_width = [0] * n
        result.context_rows = [0] * n
        result.generation_rows = [0] * n
        return result
