# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""First steps of a worker, of nobody's tokens.

What is slow but once (thread pools, allocators, code that is loaded or compiled when it is first
called) is behind it when the worker says that it is ready; and what cannot make a step does not
say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slipstream.worker import frames
from slipstream.worker.engine import ModelRunner
from slipstream.worker.frames import SeqFlag, StepPlan

_PROMPT = 32  # tokens at most
_SLOT = 0
_NEUTRAL = {"top_p": 1.0, "top_p_decay": 1.0, "top_p_reset_id": -1, "repetition_penalty": 1.0}
_GREEDY = {"num_logprobs": -1}
_DRAWN = {"seed": 1, "temperature": 1.0, "top_k": 20, "top_p": 0.9, "num_logprobs": -1}
_ODD = {"num_logprobs": 1, "presence_penalty": 0.5}  # what the host samples on any device


def warm_up(runner: ModelRunner, max_num_tokens: int) -> None:
    """Makes steps of a prompt and of single tokens, sampled in every way, and leaves no sequence
    behind: of each kind one, since a restart waits for them.

    Raises whatever a step raises. Blocks of the KV cache that it writes are nobody's yet.
    """
    per_block = runner.caches[0].shape.tokens_per_block
    room = min(cache.num_blocks for cache in runner.caches) * per_block
    most = min(_PROMPT, max_num_tokens, min(room, runner.max_seq_len) - 2)
    if most < 1:
        return
    for prompt, sampling in ((most, _GREEDY), (1, _DRAWN), (1, _ODD)):
        runner.step(_plan(runner, 0, [1] * prompt, 0, sampling))
        if prompt > 1:
            runner.step(_plan(runner, 1, [frames.TOKEN_FROM_SLOT], prompt))
        runner.step(_plan(runner, 0, [], 0))


def _plan(
    runner: ModelRunner,
    step_id: int,
    tokens: list[int],
    first: int,
    sampling: dict[str, Any] | None = None,
) -> StepPlan:
    """A step of the one slot, which it admits with ``sampling``; without tokens, retires it."""
    per_block = runner.caches[0].shape.tokens_per_block
    held, needed = -(-first // per_block), -(-(first + len(tokens)) // per_block)
    blocks = np.arange(held, max(held, needed)) if tokens else np.empty(0)
    groups = len(runner.groups)

    def u32(*values: int) -> frames.UInt32Array:
        return np.array(values if tokens else (), np.uint32)

    admitted = np.zeros(0 if sampling is None else 1, frames.ADMIT_RECORD)
    for name, value in (_NEUTRAL | (sampling or {})).items():
        admitted[name] = value
    admitted["slot"], admitted["prompt_len"] = _SLOT, len(tokens)
    admitted["history_len"] = len(tokens)
    return StepPlan(
        step_id=step_id,
        num_groups=groups,
        slot=u32(_SLOT),
        num_tokens=u32(len(tokens)),
        first_position=u32(first),
        num_new_blocks=u32(blocks.size),
        flags=u32(SeqFlag.SAMPLE),
        token_ids=np.array(tokens, np.int32),
        new_block_ids=np.tile(blocks, groups).astype(np.int32),
        copies=np.zeros(0, frames.BLOCK_COPY),
        admitted=admitted,
        retired=np.array([] if tokens else [_SLOT], np.uint32),
        aux=np.array(tokens if sampling else [], np.int32),
    )
