# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The executor's side of the step protocol, small enough for tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slipstream.models.selection import load_served
from slipstream.worker import frames
from slipstream.worker.config import WorkerConfig
from slipstream.worker.engine import ModelRunner
from slipstream.worker.frames import SeqFlag, StepPlan, StepResult
from slipstream.worker.startup import choose_device, make_runner

# `./scripts/test --gpu` runs the parity tests on a GPU, too.
DEVICE = os.environ.get("SLIPSTREAM_TEST_DEVICE", "cpu")

DEFAULT_PARAMS: dict[str, Any] = {
    "seed": 0,
    "flags": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_p_decay": 1.0,
    "top_p_min": 0.0,
    "top_p_reset_id": -1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "prompt_ignore_length": 0,
    "min_tokens": 0,
    "num_logprobs": -1,
    "prompt_len": 0,
}


class PlanBuilder:
    """Collects one step and turns it into a StepPlan."""

    def __init__(self, step_id: int = 1) -> None:
        self.step_id = step_id
        self._seqs: list[tuple[int, list[int], int, list[list[int]], int]] = []
        self._copies: list[tuple[int, int, int, int]] = []
        self._admitted: list[np.ndarray] = []
        self._retired: list[int] = []
        self._aux: list[int] = []

    def admit(
        self,
        slot: int,
        *,
        history: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        bias: Sequence[tuple[int, float]] = (),
        **params: Any,
    ) -> PlanBuilder:
        record = np.zeros(1, frames.ADMIT_RECORD)
        record["slot"] = slot
        for name, value in {**DEFAULT_PARAMS, **params}.items():
            record[name] = value
        packed_words = [len(bad_words)] if bad_words else []
        for word in bad_words:
            packed_words += [len(word), *word]
        packed_bias: list[int] = []
        for token, value in bias:
            packed_bias += [token, int(np.float32(value).view(np.int32))]
        lists = (("history", history), ("end_ids", end_ids), ("bad_words", packed_words))
        for name, values in (*lists, ("bias", packed_bias)):
            record[f"{name}_offset"] = len(self._aux)
            record[f"{name}_len"] = len(values)
            self._aux += values
        self._admitted.append(record)
        return self

    def seq(
        self,
        slot: int,
        tokens: Sequence[int],
        first: int,
        new_blocks: Sequence[int] = (),
        flags: int = SeqFlag.SAMPLE,
        later_groups: Sequence[Sequence[int]] = (),
    ) -> PlanBuilder:
        """``new_blocks``: of the first KV group; of the others as many."""
        groups = [list(blocks) for blocks in (new_blocks, *later_groups)]
        self._seqs.append((slot, list(tokens), first, groups, int(flags)))
        return self

    def copy(self, source: int, target: int, num_tokens: int) -> PlanBuilder:
        self._copies.append((source, target, num_tokens, 0))
        return self

    def retire(self, slot: int) -> PlanBuilder:
        self._retired.append(slot)
        return self

    def build(self) -> StepPlan:
        def u32(values: list[int]) -> np.ndarray:
            return np.array(values, np.uint32)

        num_groups = max((len(seq[3]) for seq in self._seqs), default=1)
        return StepPlan(
            step_id=self.step_id,
            num_groups=num_groups,
            slot=u32([seq[0] for seq in self._seqs]),
            num_tokens=u32([len(seq[1]) for seq in self._seqs]),
            first_position=u32([seq[2] for seq in self._seqs]),
            num_new_blocks=u32([len(seq[3][0]) for seq in self._seqs]),
            flags=u32([seq[4] for seq in self._seqs]),
            token_ids=np.array([t for seq in self._seqs for t in seq[1]], np.int32),
            new_block_ids=np.array(
                [b for g in range(num_groups) for seq in self._seqs for b in seq[3][g]], np.int32
            ),
            copies=np.array(self._copies, frames.BLOCK_COPY),
            admitted=(
                np.concatenate(self._admitted)
                if self._admitted
                else np.empty(0, frames.ADMIT_RECORD)
            ),
            retired=u32(self._retired),
            aux=np.array(self._aux, np.int32),
        )


def encode_step(plan: StepPlan) -> list[memoryview]:
    """The STEP payload of a plan."""
    header = np.zeros(1, frames.STEP_HEADER)
    header["step_id"] = plan.step_id
    header["num_groups"] = plan.num_groups
    arrays = []
    for name, dtype, count in frames.STEP_ARRAYS:
        header[count] = getattr(plan, name).size
        arrays.append((getattr(plan, name), dtype))
    return frames.pack_arrays(header.tobytes(), arrays)


def parse_result(payload: np.ndarray) -> StepResult:
    """The inverse of frames.encode_result, written from the layout."""
    header = payload[:48].view(frames.RESULT_HEADER)[0]
    offset = 48
    arrays: dict[str, Any] = {}
    for name, dtype, count in frames.RESULT_ARRAYS:
        offset = (offset + 7) // 8 * 8
        end = offset + int(header[count]) * dtype.itemsize
        arrays[name] = payload[offset:end].view(dtype).copy()
        offset = end
    assert offset == payload.size
    ids = ("step_id", "start_ns", "end_ns")
    return StepResult(**{name: int(header[name]) for name in ids}, **arrays)


def logits_of(result: StepResult, vocab: int) -> list[np.ndarray]:
    """Per sequence, its rows of context and generation logits: ``[rows, vocab]``."""
    rows = result.logits.reshape(-1, vocab)
    counts = result.context_rows.astype(int) + result.generation_rows.astype(int)
    return np.split(rows, np.cumsum(counts)[:-1])


def logprobs_of(result: StepResult) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per sequence, ids and values of its log probabilities."""
    ends = np.cumsum(result.logprob_width * result.num_tokens)[:-1]
    ids, values = np.split(result.logprob_ids, ends), np.split(result.logprob_values, ends)
    return list(zip(ids, values, strict=True))


def config(path: Path | str, **overrides: Any) -> WorkerConfig:
    values: dict[str, Any] = {
        "version": "0",
        "frame_version": frames.VERSION,
        "model": str(path),
        "tokens_per_block": 4,
        "kv_cache_tokens": 4096,
        "max_num_seqs": 64,
        "num_threads": 2,
    }
    return WorkerConfig.from_map({**values, **overrides})


def load_runner(path: Path | str, **overrides: Any) -> ModelRunner:
    settings = config(path, **overrides)
    device = choose_device(DEVICE if settings.device == "auto" else settings.device)
    model = load_served(Path(path), settings.dtype, device, impl=settings.model_impl)
    return make_runner(settings, model)


@dataclass
class TestSequence:
    """A sequence as the executor sees it: tokens known, positions computed, blocks held.

    ``blocks[g]`` is its table in the g-th KV group; ``announced`` entries are in plans already.
    Blocks that it starts with are reused ones. Of the ``kept`` first blocks others make use.
    """

    __test__ = False

    slot: int
    tokens: list[int]
    computed: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    announced: int = 0
    kept: int = 0


class Driver:
    """Runs sequences on a ModelRunner, with blocks handed out in random order.

    What a window has passed is given away at once, and overwritten with NaN for good measure.
    """

    def __init__(self, runner: ModelRunner, seed: int = 0) -> None:
        self.runner = runner
        self.per_block = runner.caches[0].shape.tokens_per_block
        self.vocab = runner.decoder.spec.vocab_size
        self.random = np.random.default_rng(seed)
        self.free = [self.random.permutation(c.num_blocks).tolist() for c in runner.caches]
        self._steps = 0

    def start(self, plan: PlanBuilder, slot: int, prompt: Sequence[int], **params: Any):
        plan.admit(slot, history=prompt, prompt_len=len(prompt), **params)
        return TestSequence(slot, list(prompt))

    def new_plan(self) -> PlanBuilder:
        self._steps += 1
        return PlanBuilder(self._steps)

    def first_block(self, group: int, position: int) -> int:
        """The first block that ``position`` sees."""
        mask = self.runner.groups[group].mask
        return int(mask.first_visible(np.int64(position))) // self.per_block

    def reuse(self, slot: int, prompt: Sequence[int], other: TestSequence, count: int):
        """A sequence that starts with ``count`` tokens that another one computed."""
        tables = []
        for group, blocks in enumerate(other.blocks):
            unseen = self.first_block(group, count)
            tables.append([frames.NO_BLOCK] * unseen + blocks[unseen : count // self.per_block])
        return TestSequence(slot, list(prompt), computed=count, blocks=tables, kept=len(tables[0]))

    def release(self, sequence: TestSequence) -> None:
        """Takes back all blocks; the slot must be retired before they are used again."""
        for free, blocks in zip(self.free, sequence.blocks, strict=True):
            free += [block for block in blocks[sequence.kept :] if block != frames.NO_BLOCK]
        sequence.blocks = []

    def _give_up(self, sequence: TestSequence) -> None:
        for group, blocks in enumerate(sequence.blocks):
            passed = range(sequence.kept, self.first_block(group, sequence.computed))
            for i in passed:
                if blocks[i] == frames.NO_BLOCK:
                    continue
                self.runner.caches[group].pool[:, blocks[i]] = float("nan")
                self.free[group].insert(0, blocks[i])
                blocks[i] = frames.NO_BLOCK

    def add(
        self,
        plan: PlanBuilder,
        sequence: TestSequence,
        count: int,
        *,
        flags: int | None = None,
        from_slot: bool = False,
    ) -> None:
        """Schedules the next ``count`` known tokens; samples if none is left after them."""
        first, end = sequence.computed, sequence.computed + count
        sequence.blocks = sequence.blocks or [[] for _ in self.free]
        self._give_up(sequence)
        for blocks, free in zip(sequence.blocks, self.free, strict=True):
            while len(blocks) * self.per_block < end:
                blocks.append(free.pop())
        new, *later = (blocks[sequence.announced :] for blocks in sequence.blocks)
        sequence.announced = len(sequence.blocks[0])
        tokens = [frames.TOKEN_FROM_SLOT] if from_slot else sequence.tokens[first:end]
        if flags is None:
            flags = SeqFlag.SAMPLE if end == len(sequence.tokens) else 0
        plan.seq(sequence.slot, tokens, first, new, flags, later)
        sequence.computed = end

    def generate(
        self, prompt: Sequence[int], count: int, slot: int = 0, chunk: int = 1 << 30, **params: Any
    ) -> tuple[list[int], list[StepResult]]:
        """Prefills in chunks, then decodes with device feedback; the tokens and all results."""
        plan = self.new_plan()
        sequence = self.start(plan, slot, prompt, **params)
        results = []
        while sequence.computed < len(prompt):
            self.add(plan, sequence, min(chunk, len(prompt) - sequence.computed))
            results.append(self.runner.step(plan.build()))
            plan = self.new_plan()
        generated = results[-1].tokens.tolist()
        while len(generated) < count:
            sequence.tokens.append(generated[-1])
            self.add(plan, sequence, 1, from_slot=True)
            results.append(self.runner.step(plan.build()))
            generated += results[-1].tokens.tolist()
            plan = self.new_plan()
        self.runner.step(plan.retire(slot).build())
        self.release(sequence)
        return generated, results
