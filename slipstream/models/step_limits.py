# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How much a step does where the configuration leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

_CPU = (64, 2048)
_GPU = (256, 2048)
# A step of prompts keeps all others waiting: only large GPUs compute so many tokens in a moment.
_LARGE_GPU = (256, 8192)
_LARGE_GPU_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Sequences that run at once, and the token budget of a step."""

    max_num_seqs: int
    max_num_tokens: int

    @classmethod
    def of(cls, max_num_seqs: int, max_num_tokens: int, gpu_bytes: int | None) -> StepLimits:
        """What is configured; a 0 becomes what suits the device.

        gpu_bytes: memory of the GPU in all, None on a CPU. Neither is made to contradict the other:
        every running sequence takes a token of a step's budget.
        """
        if gpu_bytes is None:
            seqs, tokens = _CPU
        else:
            seqs, tokens = _LARGE_GPU if gpu_bytes >= _LARGE_GPU_BYTES else _GPU
        return cls(
            max_num_seqs or min(seqs, max_num_tokens or seqs),
            max_num_tokens or max(tokens, max_num_seqs),
        )
