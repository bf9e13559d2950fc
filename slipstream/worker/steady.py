# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A batch that decodes on, step after step, and what of it need not be found out again.

Between two steps of a large batch the caches of the host's core go cold: what such a step costs is
above all how much code it runs and how much memory it touches.
"""

from __future__ import annotations

import numpy as np

from slipstream.worker.engine import IntArray, LogitRows, add_tokens
from slipstream.worker.frames import (
    Int32Array,
    StepPlan,
    StepResult,
    UInt32Array,
    pack_sequences,
)
from slipstream.worker.staging import StepShape

_NO_TOKENS = np.empty(0, np.int32)


class SteadyBatch:
    """The sequences of ``plan``, each of which computes one token there and samples it on the
    device. Valid while no other step comes in between.

    ``slots`` and ``rows``: of the plan. ``shape``: of its graph. ``draws``: whether any is not
    greedy. ``filled``: those of the staging's buffers that hold all that stays the same.
    """

    def __init__(
        self, plan: StepPlan, slots: IntArray, rows: LogitRows, shape: StepShape, *, draws: bool
    ) -> None:
        self.slots = slots
        self.rows = rows
        self.shape = shape
        self.draws = draws
        self.filled: set[int] = set()
        self._key = _key(plan)
        self._slot = plan.slot.copy()
        self._nothing = np.zeros(slots.size, np.uint32)
        self._each = np.ones(slots.size, np.uint32)
        self._packed = pack_sequences(self._answer(0, self._nothing, self._each))

    def goes_on_in(self, plan: StepPlan) -> bool:
        """Whether the plan is the next step of this batch and nothing else."""
        changes = plan.retired.size or plan.admitted.size or plan.copies.size
        fits = plan.new_block_ids.size <= self.shape.new_blocks
        return not changes and fits and _key(plan) == self._key

    def answer(self, step_id: int, tokens: Int32Array, finite: Int32Array) -> StepResult:
        """To the step; times are the caller's to fill in. tokens, finite: ``[sequences]``, what the
        device has sampled, and 0 where the logits were not finite."""
        if np.count_nonzero(finite) == finite.size:
            answer = self._answer(step_id, self._nothing, self._each)
            answer.tokens = tokens.copy()
            answer.packed = self._packed
        else:
            answer = self._answer(step_id, self._nothing.copy(), self._nothing.copy())
            add_tokens(answer, self.rows, tokens, finite != 0)
        return answer

    def _answer(self, step_id: int, status: UInt32Array, num_tokens: UInt32Array) -> StepResult:
        nothing = self._nothing
        return StepResult(
            step_id=step_id,
            start_ns=0,
            end_ns=0,
            slot=self._slot,
            status=status,
            num_tokens=num_tokens,
            logprob_width=nothing,
            context_rows=nothing,
            generation_rows=nothing,
            tokens=_NO_TOKENS,
        )


def _key(plan: StepPlan) -> bytes:
    return plan.slot.tobytes() + plan.num_tokens.tobytes() + plan.flags.tobytes()
