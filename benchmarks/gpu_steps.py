# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps of the worker alone on a GPU: their time, the host's work, and the GPU's gaps.

    python benchmarks/gpu_steps.py llama-3.1-8b [--batch 1,64,256] [--trace FOLDER] [--json FILE]

Two steps are in flight, as with the Executor. Every sequence has a context of ``--context``
tokens, greedy, random weights. Host work is what the worker's thread does for a step: parsing the
plan's frame, launching, and making the result's frame. Gaps are from the end of a step's last
kernel to the start of the next step's first, in a trace of torch's profiler (``--trace`` keeps it,
for chrome://tracing or ui.perfetto.dev). ``--norms-apart`` leaves RMS norms to kernels of their own
where the products around them would do that work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import MODELS
from torch.profiler import ProfilerActivity, profile

from slipstream.layers.linear import Linear
from slipstream.link import VERSION
from slipstream.worker import frames
from slipstream.worker.config import WorkerConfig
from slipstream.worker.engine import ModelRunner, PendingStep
from slipstream.worker.frames import SeqFlag, StepPlan
from slipstream.worker.startup import load_model

_STEPS = 60
_TRACED = 10


def worker_config(folder: str, arguments: argparse.Namespace, context: int) -> WorkerConfig:
    return WorkerConfig(
        version="benchmark",
        frame_version=VERSION,
        model=folder,
        device="cuda",
        tokens_per_block=arguments.tokens_per_block,
        max_num_seqs=max(arguments.batch),
        max_num_tokens=8192,
        max_seq_len=context + 2 * _STEPS + 200,
        kv_cache_fraction=0.9,
        load_format="dummy",
        token_table=False,
    )


class Sequences:
    """Plans for sequences that are all of one length, with blocks of their own."""

    def __init__(self, batch: int, per_block: int, most: int, pool: np.ndarray) -> None:
        """pool: numbers of blocks, each sequence's own one after the other."""
        self.batch = batch
        self.per_block = per_block
        self.blocks = -(-most // per_block)
        self.pool = pool.astype(np.int32)
        self.computed = 0
        self.held = 0
        self.step_id = 0

    def plan(self, slots: np.ndarray, first: int, count: int, *, admit: bool) -> StepPlan:
        """``count`` tokens each of ``slots``, from position ``first``; the last one is sampled."""
        held = 0 if admit else -(-first // self.per_block)
        new = np.arange(held, -(-(first + count) // self.per_block))
        self.step_id += 1
        admitted = np.zeros(slots.size if admit else 0, frames.ADMIT_RECORD)
        if admit:
            admitted["slot"], admitted["prompt_len"] = slots, count
            admitted["top_p"], admitted["repetition_penalty"] = 1.0, 1.0
            admitted["top_p_reset_id"] = admitted["num_logprobs"] = -1
        tokens = np.full(slots.size * count, 5, np.int32)
        return StepPlan(
            step_id=self.step_id,
            num_groups=1,
            slot=slots.astype(np.uint32),
            num_tokens=np.full(slots.size, count, np.uint32),
            first_position=np.full(slots.size, first, np.uint32),
            num_new_blocks=np.full(slots.size, new.size, np.uint32),
            flags=np.full(slots.size, SeqFlag.SAMPLE, np.uint32),
            token_ids=tokens if admit else np.full(slots.size, frames.TOKEN_FROM_SLOT, np.int32),
            new_block_ids=self.pool[(slots[:, None] * self.blocks + new).ravel()],
            copies=np.empty(0, frames.BLOCK_COPY),
            admitted=admitted,
            retired=np.empty(0, np.uint32),
            aux=np.empty(0, np.int32),
        )

    def prompts(self, context: int) -> Iterator[StepPlan]:
        per_step = max(8192 // context, 1)
        for start in range(0, self.batch, per_step):
            slots = np.arange(start, min(start + per_step, self.batch))
            yield self.plan(slots, 0, context, admit=True)
        self.computed = context

    def decode(self) -> StepPlan:
        plan = self.plan(np.arange(self.batch), self.computed, 1, admit=False)
        self.computed += 1
        return plan


def packed(plan: StepPlan) -> np.ndarray:
    """A STEP frame's payload, as it arrives."""
    header = np.zeros(1, frames.STEP_HEADER)
    header["step_id"], header["num_groups"] = plan.step_id, plan.num_groups
    arrays = []
    for name, dtype, count in frames.STEP_ARRAYS:
        header[count] = getattr(plan, name).size
        arrays.append((getattr(plan, name), dtype))
    parts = frames.pack_arrays(header.tobytes(), arrays)
    return np.frombuffer(b"".join(map(bytes, parts)), np.uint8)


def decode_steps(runner: ModelRunner, sequences: Sequences, steps: int) -> tuple[float, list, list]:
    """Seconds in all, and per step those of launching and of finishing."""
    payloads = [packed(sequences.decode()) for _ in range(steps)]
    launching, finishing = [], []
    pending: list[PendingStep] = []

    def finish() -> None:
        step = pending.pop(0)
        while not step.done():
            pass
        start = time.perf_counter()
        frames.encode_result(step.result())
        finishing.append(time.perf_counter() - start)

    start = time.perf_counter()
    for payload in payloads:
        if len(pending) == 2:
            finish()
        begin = time.perf_counter()
        pending.append(runner.launch(frames.parse_step(payload)))
        launching.append(time.perf_counter() - begin)
    while pending:
        finish()
    return time.perf_counter() - start, launching, finishing


class Trace:
    """What a GPU did in some steps, from a trace of torch's profiler."""

    def __init__(self, file: Path, steps: int) -> None:
        events = json.loads(file.read_text())["traceEvents"]
        self.steps = steps
        self.work = sorted(
            (event["ts"], event["ts"] + event["dur"], event["name"])
            for event in events
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
        )

    def gaps(self) -> list[float]:
        """Microseconds without a kernel between a step's last one and the next one's first."""
        found, end = [], 0.0
        for begins, ends, name in self.work:
            if "_receive" in name and end:
                found.append(max(begins - end, 0.0))
            end = max(end, ends)
        return found

    def kernels(self) -> list[tuple[str, float, float]]:
        """Name, launches a step and microseconds a step until the next one starts or it ends."""
        total: dict[str, list[float]] = {}
        following = [begins for begins, _, _ in self.work[1:]] + [float("inf")]
        for (begins, ends, name), until in zip(self.work, following, strict=True):
            entry = total.setdefault(name, [0, 0.0])
            entry[0] += 1 / self.steps
            entry[1] += (min(ends, until) - begins) / self.steps
        return sorted(((name, *entry) for name, entry in total.items()), key=lambda row: -row[2])


def prepared(runner: ModelRunner, batch: int, arguments: argparse.Namespace) -> Sequences:
    """Sequences whose prompts are computed."""
    most = arguments.context + 2 * _STEPS + 100
    pool = np.arange(runner.caches[0].num_blocks)
    if arguments.scattered:
        np.random.default_rng(0).shuffle(pool)
    sequences = Sequences(batch, arguments.tokens_per_block, most, pool)
    for plan in sequences.prompts(arguments.context):
        runner.step(plan)
    decode_steps(runner, sequences, 20)
    return sequences


def timed(runner: ModelRunner, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    seconds, launching, finishing = decode_steps(runner, prepared(runner, batch, arguments), _STEPS)
    row = {
        "batch": batch,
        "ms_per_step": seconds / _STEPS * 1e3,
        "launch_us": statistics.median(launching) * 1e6,
        "finish_us": statistics.median(finishing) * 1e6,
    }
    print(
        f"batch {batch:4d}: {row['ms_per_step']:7.3f} ms/step, host launch {row['launch_us']:4.0f} "
        f"us, finish {row['finish_us']:4.0f} us",
        flush=True,
    )
    return row


def traced(runner: ModelRunner, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Traced apart from what is timed: once it was on, the profiler slows launches for good."""
    sequences = prepared(runner, batch, arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = (arguments.trace or Path(folder)) / f"steps_{arguments.model}_{batch}.json"
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            decode_steps(runner, sequences, _TRACED)
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(file))
        trace = Trace(file, _TRACED)
    gaps = trace.gaps()
    print(f"batch {batch:4d}: gap {statistics.median(gaps):.1f} us (max {max(gaps):.1f})")
    if arguments.kernels:
        for name, count, us in trace.kernels()[:20]:
            print(f"  {us:8.1f} us {count:6.1f} x {name[:90]}")
    return {"gap_us": statistics.median(gaps), "gap_max_us": max(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    sizes = [1, 8, 32, 64, 128, 256]
    parser.add_argument("--batch", type=lambda text: list(map(int, text.split(","))), default=sizes)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens-per-block", type=int, default=64)
    parser.add_argument("--scattered", action="store_true", help="blocks anywhere in the pool")
    parser.add_argument("--norms-apart", action="store_true", help="norms in kernels of their own")
    parser.add_argument("--kernels", action="store_true", help="print the time of each kernel")
    parser.add_argument("--trace", type=Path, help="folder that keeps the traces")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.norms_apart:
        Linear.streams = lambda self, rows: False  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[arguments.model]))
        start = time.perf_counter()
        loaded = load_model(
            worker_config(folder, arguments, arguments.context), lambda done, what: None
        )
        print(f"{arguments.model}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
        rows = [timed(loaded.runner, batch, arguments) for batch in arguments.batch]
        for row in rows:
            row |= traced(loaded.runner, row["batch"], arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, "steps": rows}, indent=1))


if __name__ == "__main__":
    main()
