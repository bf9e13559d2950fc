# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The runner for GPUs against the plain one, its kernels interpreted on the CPU.

What CUDA itself does is doubled: a graph that is replayed computes its shape again, from whatever
the buffers hold by then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import CASES
from flashinfer_doubles import TorchFa3, TorchXqa
from stream_doubles import TorchStreamDecode
from triton_interpreter import mend_interpreter
from worker_testing import Driver, load_runner, logprobs_of

pytest.importorskip("triton")


from slipstream.worker.frames import StepResult
from slipstream.worker.graph_runner import GraphRunner
from slipstream.worker.slots import PlanError
from slipstream.worker.step_filler import StepFiller

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="runs on GPUs are tested by the others"
)
MAX_SEQS, MAX_TOKENS = 7, 48


class NoEvent:
    def record(self, stream: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class Graph:
    """Replays what ``capture`` computes between ``torch.cuda.graph`` and its end."""

    capturing: Graph | None = None
    replays = 0

    def replay(self) -> None:
        Graph.replays += 1
        self.compute()  # type: ignore[attr-defined]

    @staticmethod
    @contextlib.contextmanager
    def capture(graph: Graph, pool: object = None) -> Iterator[None]:
        Graph.capturing = graph
        yield
        Graph.capturing = None


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a GraphRunner possible without CUDA, and layers use kernels."""
    mend_interpreter()
    zeros, compute = torch.zeros, GraphRunner._compute

    def unpinned(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return zeros(*arguments, **options)

    def captured(self: GraphRunner, shape: object) -> None:
        if Graph.capturing is not None:
            Graph.capturing.compute = lambda: compute(self, shape)  # type: ignore[attr-defined]
        else:
            compute(self, shape)

    monkeypatch.setattr(torch, "zeros", unpinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.cuda, "Event", NoEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph.capture)
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(GraphRunner, "_compute", captured)
    monkeypatch.setattr("slipstream.worker.graph_runner.graph_sizes", lambda most: [2, most])
    for module in ("graph_runner", "graph_shapes"):
        monkeypatch.setattr(f"slipstream.worker.{module}.MIXED_TOKENS", (16, 40))
    monkeypatch.setattr("slipstream.worker.graph_runner._MORE_TILES", 4)
    monkeypatch.setattr("slipstream.worker.graph_runner._SAMPLES", (2,))
    monkeypatch.setattr("slipstream.worker.tuning.choose_kernels", lambda model: None)
    for name, module in list(sys.modules.items()):
        if name.startswith("slipstream.") and hasattr(module, "has_kernels"):
            monkeypatch.setattr(module, "has_kernels", lambda device: True)


def garbage(runner: GraphRunner) -> None:
    """What padding holds must not matter."""
    runner._staging._ring.random_()


def run_steps(path: Any, *, graphs: bool | None, seed: int, steps: int = 11) -> list[list[int]]:
    """Sequences that come and go, chunked at random: the tokens of each. graphs None: the plain
    runner."""
    settings = {
        "device": "cpu",
        "dtype": "float32",
        "tokens_per_block": 16,
        "kv_cache_tokens": 4096,
        "max_num_seqs": MAX_SEQS,
        "max_num_tokens": MAX_TOKENS,
        "cuda_graphs": bool(graphs),
    }
    runner = load_runner(path, **settings)
    if graphs is not None:
        assert isinstance(runner, GraphRunner)
        garbage(runner)
    driver = Driver(runner)
    random = np.random.default_rng(seed)
    free = list(range(MAX_SEQS))
    active: list[tuple[Any, list[int], int]] = []
    finished: list[list[int]] = []
    for step in range(steps):
        plan = driver.new_plan()
        for _ in range(int(random.integers(0, 4)) if step < steps - 4 else 0):
            prompt = random.integers(3, driver.vocab, int(random.integers(1, 40))).tolist()
            slot = free.pop(0) if free else None
            if slot is None:
                break
            odd = {"temperature": 0.8, "top_k": 5} if len(prompt) % 3 == 0 else {}
            if len(prompt) % 7 == 0:
                odd["repetition_penalty"] = 1.3
            sequence = driver.start(plan, slot, prompt, seed=len(prompt), **odd)
            active.append((sequence, [], int(random.integers(1, 7))))
        budget, scheduled = MAX_TOKENS, []
        for sequence, tokens, wanted in active:
            left = len(sequence.tokens) - sequence.computed
            count = min(left, int(random.integers(1, 25)), budget)
            if count:
                budget -= count
                driver.add(plan, sequence, count, from_slot=bool(tokens))
                scheduled.append((sequence, tokens, wanted))
        if not scheduled:
            continue
        result = runner.step(plan.build())
        sampled = iter(result.tokens.tolist())
        for (sequence, tokens, _), count in zip(scheduled, result.num_tokens, strict=True):
            if count:
                tokens.append(next(sampled))
                sequence.tokens.append(tokens[-1])
        done = [entry for entry in active if len(entry[1]) >= entry[2]]
        if done:
            retiring = driver.new_plan()
            for sequence, tokens, _ in done:
                retiring.retire(sequence.slot)
                finished.append(tokens)
            runner.step(retiring.build())
            for entry in done:
                driver.release(entry[0])
                free.append(entry[0].slot)
                active.remove(entry)
    return finished + [tokens for _, tokens, _ in active]


@pytest.mark.parametrize(
    ("family", "graphs"),
    [
        ("gqa", True),
        pytest.param("llama3", True, marks=pytest.mark.slow),
        pytest.param("gqa", False, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_the_plain_runner(
    checkpoint, monkeypatch: pytest.MonkeyPatch, doubled, family: str, graphs: bool
) -> None:
    path = checkpoint(family).path
    Graph.replays = 0
    tokens = run_steps(path, graphs=graphs, seed=1)
    assert (Graph.replays > 4) == graphs
    monkeypatch.undo()
    assert sum(map(len, tokens)) > 20
    assert tokens == run_steps(path, graphs=None, seed=1)


@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("gqa", 7),
        pytest.param("gqa", 11, marks=pytest.mark.slow),
        pytest.param("window on upper layers, yarn", 11, marks=pytest.mark.slow),
    ],
)
def test_steps_with_flashinfer_are_those_of_the_plain_runner(
    checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch, doubled, family: str, steps: int
) -> None:
    """All around FlashInfer's kernels, which torch computes: layouts, tables, plans, graphs."""
    if family == "gqa":
        path = checkpoint(family).path
    else:
        path = tmp_path
        [case] = [case for case in CASES if case.shows == family]
        case.make_model().save_pretrained(path)
    TorchXqa.launches = TorchFa3.launches = 0
    monkeypatch.setattr("slipstream.attention.paged_flashinfer.XqaDecode", TorchXqa)
    monkeypatch.setattr("slipstream.attention.paged_flashinfer.Fa3Prefill", TorchFa3)
    monkeypatch.setattr("slipstream.worker.startup.choose_attention", lambda *_: "flashinfer")
    monkeypatch.setattr("slipstream.worker.startup.load_flashinfer", lambda *_: None)
    tokens = run_steps(path, graphs=True, seed=1, steps=steps)
    # More than when graphs were captured.
    assert TorchXqa.launches > 8
    assert TorchFa3.launches > 16
    monkeypatch.undo()
    assert sum(map(len, tokens)) >= steps
    assert tokens == run_steps(path, graphs=None, seed=1, steps=steps)


@pytest.mark.parametrize("most", [100, 3])
def test_steps_with_streamed_decodes_are_those_of_the_plain_runner(
    checkpoint, monkeypatch: pytest.MonkeyPatch, doubled, most: int
) -> None:
    """All around the kernel, which torch computes: shares, parts, and which batches are its."""
    path = checkpoint("gqa").path
    kernel = TorchStreamDecode()
    monkeypatch.setattr("slipstream.kernels.stream_decode.launch_stream_decode", kernel)
    monkeypatch.setattr("slipstream.attention.paged_triton.streams_decode", lambda *_: True)
    monkeypatch.setattr("slipstream.attention.paged_triton.most_streamed", lambda *_: most)
    for module in ("attention.paged_triton", "kernels.paged_decode"):
        monkeypatch.setattr(f"slipstream.{module}.decode_tile", lambda dim, streamed: 16)
    tokens = run_steps(path, graphs=True, seed=1, steps=7)
    assert kernel.launches > 8
    assert kernel.parts > 1
    assert kernel.launches > kernel.new > 4, "not both beside chunks and alone"
    monkeypatch.undo()
    assert sum(map(len, tokens)) >= 7
    assert tokens == run_steps(path, graphs=None, seed=1, steps=7)


def together(
    runner: Any, params: list[dict[str, Any]], count: int
) -> tuple[list[list[int]], list[StepResult]]:
    """Sequences that begin in one step of chunks, and then decode side by side: the tokens of each
    and all results."""
    driver = Driver(runner)
    plan = driver.new_plan()
    prompts = np.random.default_rng(7).integers(3, driver.vocab, (len(params), 5)).tolist()
    sequences = [driver.start(plan, n, prompts[n], **one) for n, one in enumerate(params)]
    for sequence in sequences:
        driver.add(plan, sequence, 5)
    results = []
    for _ in range(count):
        results.append(runner.step(plan.build()))
        plan = driver.new_plan()
        for sequence, token in zip(sequences, results[-1].tokens.tolist(), strict=True):
            sequence.tokens.append(token)
            driver.add(plan, sequence, 1, from_slot=True)
    return [sequence.tokens[5:] for sequence in sequences], results


def batches_that_decode_on(runner: Any) -> list[list[int]]:
    """Five sequences, then one in the place of another, three of them, another one alone, these
    three, all again; over the ends of blocks. The tokens of each."""
    driver = Driver(runner)
    random = np.random.default_rng(5)
    greedy, drawn = {}, {"temperature": 0.9, "seed": 3}
    sequences, all_ = [], []

    def start(plan: Any, slot: int, length: int, params: dict[str, Any]) -> Any:
        prompt = random.integers(3, driver.vocab, length).tolist()
        all_.append(driver.start(plan, slot, prompt, **params))
        driver.add(plan, all_[-1], length)
        return all_[-1]

    def run(plan: Any, members: list[Any]) -> None:
        for sequence, token in zip(members, runner.step(plan.build()).tokens.tolist(), strict=True):
            sequence.tokens.append(token)

    def decode(members: list[Any], steps: int) -> None:
        for _ in range(steps):
            plan = driver.new_plan()
            for sequence in members:
                driver.add(plan, sequence, 1, from_slot=True)
            run(plan, members)

    plan = driver.new_plan()
    sequences = [start(plan, n, 9 + n, [greedy, drawn][n % 2]) for n in range(5)]
    run(plan, sequences)
    decode(sequences, 8)
    # One token each, of the same slots, as in the step before.
    plan = driver.new_plan().retire(2)
    for n, sequence in enumerate(sequences):
        if n == 2:
            sequences[n] = start(plan, 2, 1, drawn)
        else:
            driver.add(plan, sequence, 1, from_slot=True)
    run(plan, sequences)
    decode(sequences, 6)
    decode(sequences[1:4], 5)
    plan = driver.new_plan()
    run(plan, [start(plan, 5, 20, {"num_logprobs": 2})])  # the host samples it
    decode(sequences[1:4], 4)
    decode(sequences, 5)
    return [sequence.tokens for sequence in all_]


def test_a_batch_that_decodes_on_gets_what_it_always_gets(
    checkpoint, monkeypatch: pytest.MonkeyPatch, doubled
) -> None:
    path = checkpoint("gqa").path
    settings = {"device": "cpu", "dtype": "float32", "tokens_per_block": 16, "max_num_seqs": 7}
    filled, progress = [], StepFiller.progress

    def noted(self: StepFiller, host: Any, plan: Any, batch: Any) -> None:
        filled.append(batch.slots.size)
        progress(self, host, plan, batch)

    runner = load_runner(path, **settings)
    assert isinstance(runner, GraphRunner)
    garbage(runner)
    with monkeypatch.context() as patch:
        patch.setattr(StepFiller, "progress", noted)
        tokens = batches_that_decode_on(runner)
    # All but the first steps of a batch in each of the four buffers.
    assert filled == [5] * 4 + [5] * 3 + [3] + [5]
    monkeypatch.undo()
    assert tokens == batches_that_decode_on(load_runner(path, **settings, cuda_graphs=False))


def test_a_batch_that_decodes_on_needs_its_blocks(checkpoint, doubled) -> None:
    settings = {"device": "cpu", "dtype": "float32", "tokens_per_block": 16, "max_num_seqs": 7}
    runner = load_runner(checkpoint("gqa").path, **settings)
    driver = Driver(runner)
    plan = driver.new_plan()
    sequence = driver.start(plan, 3, [5] * 9)
    driver.add(plan, sequence, 9)
    for position in range(9, 16):
        runner.step(plan.build())
        plan = driver.new_plan().seq(3, [-1], position)
    assert runner._steady is not None
    runner.step(plan.build())
    with pytest.raises(PlanError, match=r"blocks of slots \[3\] do not cover its tokens"):
        runner.step(driver.new_plan().seq(3, [-1], 16).build())


def test_bans_that_are_known_beforehand_do_not_wait_for_the_host(
    checkpoint, monkeypatch: pytest.MonkeyPatch, doubled
) -> None:
    path = checkpoint("gqa").path
    settings = {"device": "cpu", "dtype": "float32", "tokens_per_block": 16, "max_num_seqs": 6}
    runner = load_runner(path, **settings)
    assert isinstance(runner, GraphRunner)
    greedy, drawn = {}, {"temperature": 1.0, "seed": 3}
    first, _ = together(runner, [greedy, drawn] * 3, 6)
    runner = load_runner(path, **settings)
    # What each came to becomes impossible, for a while or for good.
    params = [
        greedy,
        drawn | {"min_tokens": 4, "end_ids": first[1]},
        {"min_tokens": 3, "end_ids": first[2]},
        drawn | {"bad_words": [[token] for token in first[3]]},
        {"bad_words": [[token] for token in first[4][:3]], "min_tokens": 2, "end_ids": first[4]},
        drawn,
    ]

    def refuse(self: GraphRunner, plan: Any, *_: Any) -> None:
        raise AssertionError("a step waited for the host")

    Graph.replays = 0
    with monkeypatch.context() as patch:
        patch.setattr(GraphRunner, "_step_on_host", refuse)
        tokens, _ = together(runner, params, 6)
    assert Graph.replays >= 5
    monkeypatch.undo()
    plain = load_runner(path, **settings, cuda_graphs=False)
    assert not isinstance(plain, GraphRunner)
    assert tokens == together(plain, params, 6)[0]
    assert (tokens[0], tokens[5]) == (first[0], first[5])
    for row, until in ((1, 4), (2, 3), (3, 6), (4, 2)):
        assert not set(tokens[row][:until]) & set(first[row])


def test_the_host_samples_the_rows_that_need_it(
    checkpoint, monkeypatch: pytest.MonkeyPatch, doubled
) -> None:
    path = checkpoint("gqa").path
    settings = {"device": "cpu", "dtype": "float32", "tokens_per_block": 16, "max_num_seqs": 7}
    drawn = {"temperature": 1.0, "seed": 3}
    params = [
        {},
        {"num_logprobs": 2},
        drawn | {"presence_penalty": 1.5, "end_ids": [3], "min_tokens": 4},
        {"bias": [(4, 30.0), (9, 29.0)], "bad_words": [[4]], "num_logprobs": 0},
        drawn,
        {"bad_words": [[5, 6], [7]]},
        {"bad_words": [[8]], "end_ids": list(range(30)), "min_tokens": 5},
    ]
    tokens, results = together(load_runner(path, **settings), params, 6)
    monkeypatch.undo()
    plain, expected = together(load_runner(path, **settings, cuda_graphs=False), params, 6)
    assert tokens == plain
    assert 9 in plain[3], "the bias matters"
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.logprob_width, [0, 3, 0, 1, 0, 0, 0])
        for (ids, values), (their_ids, their_values) in zip(
            logprobs_of(result), logprobs_of(other), strict=True
        ):
            np.testing.assert_array_equal(ids, their_ids)
            np.testing.assert_allclose(values, their_values, rtol=1e-4, atol=1e-4)
