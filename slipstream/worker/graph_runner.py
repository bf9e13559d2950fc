# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Applies step plans to a decoder on an NVIDIA GPU without ever waiting for it.

Block tables and the last token of every slot live on the GPU. A step is a replayed CUDA graph (or
the same kernels one by one, where none was captured for its shape), whose first kernel reads the
step's small arrays in the host's memory and whose last one writes the tokens there; the next step
can be enqueued before they have arrived. What needs tokens on the host first, such as penalties, is
sampled there and then, and waits; what else there is in such a step is not.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from slipstream.attention.device_attention import DeviceAttention, device_attention
from slipstream.attention.kv_cache import KvCache
from slipstream.attention.kv_scale import KvScale
from slipstream.attention.paged_triton import DeviceBatch
from slipstream.kernels.argmax import greedy
from slipstream.kernels.flashinfer_calls import Chunks
from slipstream.kernels.sampling import draw_rows
from slipstream.kernels.step_tokens import expand_tokens, keep_tokens
from slipstream.models.decoder import Decoder
from slipstream.models.kv_groups import KvGroup
from slipstream.sampling.processors import banned_tokens
from slipstream.sampling.sampler import Logprobs, Sampled, sample
from slipstream.worker.engine import (
    IntArray,
    LogitRows,
    LogitsOf,
    ModelRunner,
    PendingStep,
    add_tokens,
)
from slipstream.worker.frames import Int32Array, StepPlan, StepResult
from slipstream.worker.graph_shapes import MIXED_TOKENS, Tiles, fitting, graph_sizes
from slipstream.worker.slots import PlanError
from slipstream.worker.staging import DeviceStep, Staging, StepShape
from slipstream.worker.steady import SteadyBatch
from slipstream.worker.step_filler import StepFiller

Progress = Callable[[float, str], None]

_DEPTH = 4  # steps whose buffers are kept apart; at most two are in flight
_MORE_TILES = 64  # of a mixed graph, beyond what its tokens fill: as many prompts may end midway
_NO_CHUNKS = Chunks(*np.zeros((4, 0), np.int64))
_SAMPLES = (32, 128)  # in mixed graphs, or all: rows of logits cost as much as tokens


class GraphRunner(ModelRunner):
    """A ModelRunner for decoders whose keys and values are cached apart, on a CUDA device."""

    decoder: Decoder

    def __init__(
        self,
        decoder: Decoder,
        groups: Sequence[KvGroup],
        caches: Sequence[KvCache],
        *,
        max_num_seqs: int,
        max_seq_len: int,
        max_num_tokens: int,
        kv_scales: Sequence[KvScale] | None = None,
        kernels: DeviceAttention = "triton",
    ) -> None:
        super().__init__(
            decoder,
            groups,
            caches,
            max_num_seqs=max_num_seqs,
            max_seq_len=max_seq_len,
            kv_scales=kv_scales,
        )
        spec, device = decoder.spec, decoder.device
        tokens = max(max_num_tokens, max_num_seqs)  # a graph of decodes may be larger than a step
        self._kernels = device_attention(
            kernels,
            self.caches,
            [group.layers for group in self.groups],
            spec.num_heads,
            spec.scores,
            max_decodes=max_num_seqs,
            max_positions=max_seq_len,
            max_tokens=tokens,
            depth=_DEPTH,
            scales=kv_scales,
        )
        self._max_num_tokens = max_num_tokens
        self._per_block = self.caches[0].shape.tokens_per_block
        self._max_num_seqs = max_num_seqs
        groups_, num_slots, blocks = self._slots.block_tables.shape
        # One row more than the host knows, for padding.
        self._tables = torch.zeros(
            (groups_, num_slots + 1, blocks), dtype=torch.int32, device=device
        )
        self._filler = StepFiller(self._slots, self._tables)
        # Mixed graphs are a little larger than any step: see _mixed_shapes.
        largest = StepShape(
            tokens,
            max_num_seqs,
            tokens + _MORE_TILES,
            max_num_seqs,
            self._room_for_blocks(tokens),
        )
        self._staging = Staging(largest, _DEPTH, device)
        self._write_slots = torch.zeros(groups_ * tokens, dtype=torch.int64, device=device)
        self._logits_of_samples = torch.zeros(
            (max_num_seqs, spec.vocab_size), dtype=decoder.logits_dtype, device=device
        )
        # Tokens, and whether the row that each came from was finite.
        aligned = -(-max_num_seqs // 4) * 4  # else kernels are compiled anew for the second row
        self._sampled = torch.zeros((2, aligned), dtype=torch.int32, device=device)
        self._unread = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._arrived = torch.zeros((_DEPTH, 2, max_num_seqs), dtype=torch.int32, pin_memory=True)
        self._arrived_on_host = self._arrived.numpy()
        self._arrivals = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._stream = torch.cuda.current_stream(device)
        self._events = [torch.cuda.Event() for _ in range(_DEPTH)]
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._decode_sizes: list[int] = []
        self._mixed: list[StepShape] = []  # by tokens, then samples
        self._steady: SteadyBatch | None = None  # that of the last step

    @torch.inference_mode()
    def capture(self, progress: Progress = lambda fraction, what: None) -> None:
        """Captures decode steps of every size in ``graph_sizes`` and mixed steps of several sizes,
        largest first, so that all share the memory of the first."""
        sizes = graph_sizes(self._max_num_seqs)
        mixed = self._mixed_shapes()
        shapes = [*map(self._decode_shape, sizes), *mixed]
        pool = torch.cuda.graph_pool_handle()
        for done, shape in enumerate(sorted(shapes, key=lambda s: -s.tokens)):
            progress(done / len(shapes), f"capturing CUDA graphs: {shape.tokens} tokens")
            self._filler.clear(self._staging.begin(shape))
            if shape.tiles:
                self._kernels.stage_chunks(_NO_CHUNKS, shape.tokens, self._staging.turn)
            self._compute(shape)  # compiles and chooses kernels, which a capture must not
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._compute(shape)
            self._graphs[shape] = graph
        self._decode_sizes, self._mixed = sizes, mixed

    def _mixed_shapes(self) -> list[StepShape]:
        return [
            StepShape(
                tokens,
                samples,  # what decodes samples; and room for rows costs as if they were there
                -(-tokens // self._kernels.tile_tokens) + _MORE_TILES,
                samples,
                self._room_for_blocks(tokens),
            )
            for tokens in MIXED_TOKENS
            if tokens <= self._max_num_tokens
            for samples in _sample_sizes(min(tokens, self._max_num_seqs))
        ]

    def _decode_shape(self, sequences: int) -> StepShape:
        return StepShape(sequences, sequences, 0, sequences, sequences * len(self.groups))

    def _room_for_blocks(self, tokens: int) -> int:
        """As many as a step of this size fills, of whatever sequences; not those that it reuses."""
        sequences = min(tokens, self._max_num_seqs)
        return (tokens // self._per_block + sequences) * len(self.groups)

    def launch(self, plan: StepPlan) -> PendingStep:
        """See ModelRunner.launch; waits for nothing unless the host has to see the logits."""
        if self._steady is not None and self._steady.goes_on_in(plan):
            return self._go_on(self._steady, plan)
        self._steady = None
        return self._launch(plan)

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> PendingStep:
        """A step of any kind."""
        slots = self._apply(plan)
        start_ns = time.monotonic_ns()
        num_tokens = plan.num_tokens.astype(np.int64)
        rows = LogitRows.of(num_tokens, plan.flags)
        if not slots.size or self._wants_logits(slots, rows):
            result = self._step_on_host(plan, slots, num_tokens, rows)
            result.start_ns, result.end_ns = start_ns, time.monotonic_ns()
            return PendingStep.of(result)
        shape, picks = self._enqueue(plan, slots, num_tokens, rows)
        self._ban(plan, slots, num_tokens, rows, shape, picks)
        self._steady = self._steady_batch(plan, slots, rows, shape)
        result = self._result(plan, slots, rows, None, None)
        result.start_ns = start_ns

        def answer(tokens: Int32Array, finite: Int32Array) -> StepResult:
            add_tokens(result, rows, tokens[picks], finite[picks] != 0)
            return result

        return self._pending(answer)

    def _go_on(self, batch: SteadyBatch, plan: StepPlan) -> PendingStep:
        """The next step of a batch that decodes on."""
        self._slots.append_blocks(plan, batch.slots)
        start_ns = time.monotonic_ns()
        host = self._staging.begin(batch.shape)
        if self._staging.turn in batch.filled:
            self._filler.progress(host, plan, batch)
        else:
            self._filler.decodes(host, plan, batch.slots, batch.rows)
            batch.filled.add(self._staging.turn)
        self._graphs[batch.shape].replay()
        step_id, count = plan.step_id, batch.slots.size

        def answer(tokens: Int32Array, finite: Int32Array) -> StepResult:
            result = batch.answer(step_id, tokens[:count], finite[:count])
            result.start_ns = start_ns
            return result

        return self._pending(answer)

    def _steady_batch(
        self, plan: StepPlan, slots: IntArray, rows: LogitRows, shape: StepShape
    ) -> SteadyBatch | None:
        """Of a step whose sequences all decode, in a graph and with nothing to be done beside."""
        state, count = self._slots.sampling, slots.size
        single = plan.token_ids.size == rows.sampled_seqs.size == count
        if not single or shape.tiles or shape not in self._graphs or state.features[slots].any():
            return None
        draws = bool(state.temperature[slots].any())
        batch = SteadyBatch(plan, slots, rows, shape, draws=draws)
        batch.filled.add(self._staging.turn)
        return batch

    def _apply(self, plan: StepPlan) -> IntArray:
        if plan.token_ids.size > self._max_num_tokens:
            raise PlanError(
                f"step {plan.step_id} has {plan.token_ids.size} tokens, max_num_tokens is "
                f"{self._max_num_tokens}"
            )
        return super()._apply(plan)

    def _pending(self, answer: Callable[[Int32Array, Int32Array], StepResult]) -> PendingStep:
        """answer: makes the result of the rows' tokens, and of whether they were finite."""
        turn = self._staging.turn
        arrived, event = self._arrived_on_host[turn], self._events[turn]
        event.record(self._stream)

        def finish() -> StepResult:
            event.synchronize()
            result = answer(*arrived)
            result.end_ns = time.monotonic_ns()
            return result

        return PendingStep(event.query, finish)

    def _wants_logits(self, slots: IntArray, rows: LogitRows) -> bool:
        """Whether a row of logits is returned, or sampled in a way that waits for tokens on the
        host or that no kernel knows."""
        sampled = slots[rows.sampled_seqs]
        return bool(
            rows.context_rows.any()
            or self._slots.sampling.elaborate[sampled].any()
            or self._slots.generation_logits[sampled].any()
        )

    def _step_on_host(
        self, plan: StepPlan, slots: IntArray, num_tokens: IntArray, rows: LogitRows
    ) -> StepResult:
        logits_of, sampled = None, None
        if rows.context_rows.any():
            shape = self._stage_mixed(plan, slots, num_tokens, rows, graphs=False)
            logits_of = self._logits_of(self._hidden(self._receive(shape), None), rows)
        elif slots.size:
            shape, picks = self._enqueue(plan, slots, num_tokens, rows)
            if self._slots.generation_logits[slots[rows.sampled_seqs]].any():
                logits_of = self._logits_at(picks)
            else:
                self._ban(plan, slots, num_tokens, rows, shape, picks)
                sampled = self._sample_elaborate(plan, slots, num_tokens, rows, picks)
        if logits_of is not None:
            sampled = self._sample(logits_of, plan, slots, num_tokens, rows)
        return self._result(plan, slots, rows, logits_of, sampled)

    def _logits_at(self, picks: IntArray) -> LogitsOf:
        """Of the step that was enqueued, as it left them. picks: the row of each sample."""
        return lambda wanted: self._logits_of_samples[self._tensor(picks[wanted])].float()

    def _sample_elaborate(
        self,
        plan: StepPlan,
        slots: IntArray,
        num_tokens: IntArray,
        rows: LogitRows,
        picks: IntArray,
    ) -> Sampled:
        """What the device has sampled, but for the rows that need more."""
        chosen = slots[rows.sampled_seqs]
        which = np.flatnonzero(self._slots.sampling.elaborate[chosen])
        logits = self._logits_at(picks)(which)
        index = self._generated(plan, slots, num_tokens, rows)[which]
        part = sample(logits, chosen[which], index, self._slots.sampling)
        self._slots.last_token[self._tensor(chosen[which])] = part.tokens
        tokens, finite = self._sampled[:, self._tensor(picks)]
        tokens[self._tensor(which)] = part.tokens.int()
        known = finite.cpu().numpy() != 0
        known[which] = part.finite
        width = np.zeros(chosen.size, np.uint32)
        width[which] = part.logprobs.width
        logprobs = Logprobs(width, part.logprobs.ids, part.logprobs.values)
        return Sampled(tokens, known, logprobs)

    def _enqueue(
        self, plan: StepPlan, slots: IntArray, num_tokens: IntArray, rows: LogitRows
    ) -> tuple[StepShape, IntArray]:
        """Enqueues forward and sampling. Returns the shape and, for each sequence that samples, its
        row of ``_logits_of_samples`` and ``_sampled``."""
        shape = self._decodes(slots, num_tokens)
        if shape is not None:
            self._filler.decodes(self._staging.begin(shape), plan, slots, rows)
            self._graphs[shape].replay()
            return shape, rows.sampled_seqs
        shape = self._stage_mixed(plan, slots, num_tokens, rows, graphs=True)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._compute(shape)
        return shape, np.arange(rows.sampled_seqs.size)

    def _ban(
        self,
        plan: StepPlan,
        slots: IntArray,
        num_tokens: IntArray,
        rows: LogitRows,
        shape: StepShape,
        picks: IntArray,
    ) -> None:
        """Samples the step that was enqueued again where it might have come to a banned token.

        A graph that every step replays would have to look for such; few have any.
        """
        state = self._slots.sampling
        chosen = slots[rows.sampled_seqs]
        # Elaborate rows are the host's, log probabilities of what the model says included.
        which = np.flatnonzero((state.features[chosen] != 0) & ~state.elaborate[chosen])
        if not which.size:
            return
        index = self._generated(plan, slots, num_tokens, rows)[which]
        places, tokens = banned_tokens(chosen[which], index, state)
        if not places.size:
            return
        flat = torch.from_numpy(picks[which[places]] * self._logits_of_samples.shape[1] + tokens)
        flat = flat.pin_memory().to(self.device, non_blocking=True)  # see _new_blocks
        # Finite, as a kernel takes a row that is not to be broken; whether it is was seen before.
        lowest = torch.finfo(self._logits_of_samples.dtype).min
        self._logits_of_samples.view(-1).index_fill_(0, flat, lowest)
        self._choose(self._staging.last_received(shape), self._unread[: shape.samples])

    def _decodes(self, slots: IntArray, num_tokens: IntArray) -> StepShape | None:
        """The graph of a step of single tokens; None: not one of those."""
        if num_tokens.max() > 1 or not self._decode_sizes or slots.size > self._decode_sizes[-1]:
            return None
        size = self._decode_sizes[bisect.bisect_left(self._decode_sizes, slots.size)]
        return self._decode_shape(size)

    def _stage_mixed(
        self,
        plan: StepPlan,
        slots: IntArray,
        num_tokens: IntArray,
        rows: LogitRows,
        *,
        graphs: bool,
    ) -> StepShape:
        """Chunks and single tokens; with ``graphs`` padded to the shape of one that fits."""
        starts = np.cumsum(num_tokens) - num_tokens
        tiles = Tiles.of(plan, num_tokens, starts, self._kernels.tile_tokens)
        exact = StepShape(
            plan.token_ids.size,
            int((num_tokens == 1).sum()),
            tiles.rows.size,
            rows.sampled_seqs.size,
            self._room_for_blocks(plan.token_ids.size),
        )
        shape = fitting(self._mixed, exact) if graphs else exact
        chunks = Chunks(
            starts, num_tokens, slots, plan.first_position.astype(np.int64) + num_tokens
        )
        self._filler.chunks(self._staging.begin(shape), plan, chunks, tiles, rows)
        if shape.tiles:
            self._kernels.stage_chunks(chunks, shape.tokens, self._staging.turn)
        return shape

    def _hidden(self, step: DeviceStep, kept: torch.Tensor | None) -> torch.Tensor:
        tokens = step.shape.tokens
        groups = self._tables.shape[0]
        write_slots = self._write_slots[: groups * tokens].view(groups, tokens)
        expand_tokens(
            step.token_ids,
            step.token_slots,
            step.positions,
            self._slots.last_token,
            self._tables,
            self._per_block,
            write_slots,
        )
        batch = DeviceBatch(
            positions=step.positions,
            write_slots=write_slots,
            block_tables=self._tables,
            decode_rows=step.decode_rows,
            decode_slots=step.decode_slots,
            tile_rows=step.tile_rows,
            tile_sizes=step.tile_sizes,
            tile_slots=step.tile_slots,
        )
        return self.decoder(step.token_ids, step.positions, self._kernels.plan(batch), kept)

    def _receive(self, shape: StepShape) -> DeviceStep:
        return self._staging.receive(shape, self._tables)

    def _compute(self, shape: StepShape) -> None:
        """Forward and sampling of the step that was staged, enqueued; leaves tokens in the slots
        and in ``_arrived``."""
        step = self._receive(shape)
        rows = shape.samples
        every = not rows or shape == self._decode_shape(rows)  # the latter in their order
        hidden = self._hidden(step, None if every else step.sample_rows)
        if not rows:
            return
        self.decoder.logits_into(hidden, self._logits_of_samples[:rows])
        self._choose(step, self._sampled[1, :rows])

    def _choose(self, step: DeviceStep, finite: torch.Tensor) -> None:
        """Enqueues the choice of tokens from ``_logits_of_samples``. finite: what is told of rows
        goes there."""
        rows = step.shape.samples
        logits, sampled = self._logits_of_samples[:rows], self._sampled[:, :rows]
        tokens = sampled[0]
        greedy(logits, tokens, finite, self._arrivals)
        draw_rows(
            logits, step.temperature, step.top_k, step.top_p, step.min_p, step.uniform, tokens
        )
        keep_tokens(
            sampled,
            step.sample_slots,
            self._slots.last_token,
            self.decoder.spec.vocab_size,
            self._staging.received,
            self._arrived,
        )


def _sample_sizes(most: int) -> list[int]:
    """Of mixed graphs that may sample up to so many rows, ascending."""
    return [*(fewer for fewer in _SAMPLES if fewer < most), most]
