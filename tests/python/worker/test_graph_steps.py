# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How steps become shapes of CUDA graphs, and how they overlap. Needs no GPU."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from worker_testing import PlanBuilder, encode_step, parse_result

from slipstream.layers.linear import FewRows
from slipstream.link import FrameType
from slipstream.worker.channel import Channel
from slipstream.worker.engine import LogitRows, PendingStep
from slipstream.worker.frames import StepPlan, StepResult, encode_result
from slipstream.worker.loop import run_steps
from slipstream.worker.staging import HostStep, StepShape
from slipstream.worker.steady import SteadyBatch

SHAPE = StepShape(tokens=7, decodes=3, tiles=5, samples=3, new_blocks=9)


def test_arrays_of_a_step_lie_apart_and_aligned() -> None:
    places = [place for _, place, _, _ in SHAPE.places()]
    assert all(place.start % 16 == 0 for place in places)
    assert all(a.stop <= b.start for a, b in zip(places, places[1:], strict=False))
    buffer = np.zeros(SHAPE.nbytes, np.uint8)
    host = HostStep(buffer, SHAPE)
    for number, (name, *_) in enumerate(SHAPE.places()):
        getattr(host, name)[:] = number
    for number, (name, place, dtype, _) in enumerate(SHAPE.places()):
        values = buffer[place].view(dtype)
        assert (values == number).all(), name
        assert values.size in (3, 5, 7, 9)


def test_a_shape_holds_what_is_no_larger_in_anything() -> None:
    assert StepShape(7, 3, 4, 1).fits(SHAPE)
    for larger in ((8, 3, 4, 1), (7, 4, 4, 1), (7, 3, 6, 1), (7, 3, 4, 4)):
        assert not StepShape(*larger).fits(SHAPE)
    assert StepShape(7, 3, 5, 3, new_blocks=10).fits(SHAPE), "blocks can be brought beforehand"


def test_graph_sizes_waste_little() -> None:
    pytest.importorskip("triton")
    from slipstream.worker.graph_shapes import graph_sizes

    assert graph_sizes(1) == [1]
    assert graph_sizes(40) == list(range(1, 41))
    for most in (64, 65, 100, 256, 300, 512):
        sizes = graph_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[:64] == list(range(1, 65))
        assert sizes[-1] == most
        steps = np.diff(sizes)
        assert (steps <= np.maximum(np.array(sizes[:-1]) // 8, 1)).all()
    assert graph_sizes(4096)[-1] == 1024
    assert graph_sizes(1024) == sorted(set(graph_sizes(1024)))


def test_a_mixed_step_takes_the_smallest_graph_that_holds_it() -> None:
    pytest.importorskip("triton")
    from slipstream.worker.graph_shapes import fitting

    graphs = [StepShape(t, min(t, 100), t // 32 + 8, s) for t in (64, 128, 256) for s in (32, 64)]
    step = StepShape(tokens=60, decodes=3, tiles=4, samples=5)
    assert fitting(graphs, step) == graphs[0]
    assert fitting(graphs, StepShape(60, 3, 4, 40)) == graphs[1]
    assert fitting(graphs, StepShape(64, 3, 11, 5)) == graphs[2], "more tiles than the first has"
    alone = StepShape(60, 3, 16, 5)
    assert fitting(graphs, alone) == alone, "four times as many tokens would be computed"
    assert fitting(graphs, StepShape(300, 3, 4, 5)) == StepShape(300, 3, 4, 5)
    assert fitting([], step) == step


def test_a_few_tokens_more_than_a_round_number_waste_little() -> None:
    pytest.importorskip("triton")
    from slipstream.worker.graph_shapes import MIXED_TOKENS, fitting

    assert list(MIXED_TOKENS) == sorted(set(MIXED_TOKENS))
    graphs = [StepShape(tokens, tokens, 500, 32) for tokens in MIXED_TOKENS]
    for prompts in (1, 2, 3, 4, 5, 6, 7):
        for decodes in (0, 1, 64):
            step = StepShape(1024 * prompts + decodes, decodes, 100, 8)
            assert fitting(graphs, step).tokens - step.tokens < 64


def test_tiles_cover_every_chunk_once() -> None:
    pytest.importorskip("triton")
    from slipstream.worker.graph_shapes import Tiles

    plan = PlanBuilder().seq(0, [5] * 70, 100).seq(1, [5], 40).seq(2, [5] * 32, 0).build()
    num_tokens = plan.num_tokens.astype(np.int64)
    starts = np.cumsum(num_tokens) - num_tokens
    tiles = Tiles.of(plan, num_tokens, starts, 32)
    covered = sorted(
        row
        for first, size in zip(tiles.rows, tiles.sizes, strict=True)
        for row in range(first, first + size)
    )
    assert covered == [*range(70), *range(71, 103)]
    assert tiles.sizes.max() <= 32
    assert tiles.seqs.tolist() == [0, 0, 0, 2], "what sees most comes first"
    assert tiles.rows.tolist() == [64, 32, 0, 71]


def test_the_kernel_of_a_row_count_is_the_one_measured_for_the_next_size() -> None:
    few = FewRows([(1, "one"), (16, "some"), (32, None)], arrivals=None)  # type: ignore[list-item,arg-type]
    found = [few.config(rows) for rows in (1, 2, 16, 17, 32, 33, 500)]
    assert found == ["one", "some", "some", None, None, None, None]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("broken", [False, True])
def test_the_answer_of_a_batch_that_decodes_on_is_that_of_any_step(
    count: int, broken: bool
) -> None:
    builder = PlanBuilder(3)
    for slot in range(count):
        builder.seq(slot + 10, [-1], 20)
    plan = builder.build()
    each = np.arange(count)
    rows = LogitRows(each, each, each, np.zeros(count, np.int64), each)
    batch = SteadyBatch(plan, each + 10, rows, StepShape(8, 8, 0, 8, 8), draws=False)
    device = np.arange(100, 100 + count, dtype=np.int32)
    finite = np.ones(count, np.int32)
    finite[-1] = not broken
    result = batch.answer(8, device, finite)
    device[:] = 0  # the buffer is used again
    whole = finite != 0
    expected = StepResult(
        step_id=8,
        start_ns=0,
        end_ns=0,
        slot=plan.slot,
        status=(~whole).astype(np.uint32),
        num_tokens=whole.astype(np.uint32),
        logprob_width=np.zeros(count, np.uint32),
        context_rows=np.zeros(count, np.uint32),
        generation_rows=np.zeros(count, np.uint32),
        tokens=np.arange(100, 100 + count, dtype=np.int32)[whole],
    )
    assert b"".join(encode_result(result)) == b"".join(encode_result(expected))
    np.testing.assert_array_equal(result.status, expected.status)
    np.testing.assert_array_equal(result.num_tokens, expected.num_tokens)


class FakeRunner:
    """Steps end when the test says so."""

    def __init__(self) -> None:
        self.launched: list[int] = []
        self.ended: set[int] = set()
        self.changed = threading.Condition()

    def launch(self, plan: StepPlan) -> PendingStep:
        number = plan.step_id
        rows = LogitRows.of(plan.num_tokens.astype(np.int64), plan.flags)
        none = np.zeros(plan.slot.size, np.uint32)
        result = StepResult(
            number, 0, 0, plan.slot.copy(), none, none, none, rows.context_rows.astype(np.uint32),
            none, np.empty(0, np.int32),
        )  # fmt: skip
        with self.changed:
            self.launched.append(number)
            self.changed.notify_all()
        return PendingStep(lambda: number in self.ended, lambda: result)

    def wait_launched(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.launched) >= count, 10)


def test_a_step_is_launched_while_the_one_before_runs() -> None:
    ours, theirs = socket.socketpair()
    executor, worker = Channel(ours), Channel(theirs)
    runner = FakeRunner()
    thread = threading.Thread(target=run_steps, args=(worker, runner, None))
    thread.start()
    for number in (1, 2):
        plan = PlanBuilder(number).seq(0, [5], number).build()
        executor.send(FrameType.STEP, encode_step(plan))
        runner.wait_launched(number)
    assert not executor.wait(0.05), "no result before its step has ended"
    runner.ended.add(2)
    assert not executor.wait(0.05), "results come in the order of the steps"
    runner.ended.add(1)
    answered = []
    for _ in range(2):
        frame = executor.receive()
        assert frame is not None
        answered.append(parse_result(frame.payload).step_id)
    assert answered == [1, 2]
    executor.send_map(FrameType.SHUTDOWN, {})
    thread.join(10)
    assert not thread.is_alive()
    executor.close()
    worker.close()
