# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""From a plan and what slots hold to the arrays of a step in host memory."""

from __future__ import annotations

import numpy as np
import torch

from slipstream.kernels.flashinfer_calls import Chunks
from slipstream.sampling.rng import uniform
from slipstream.worker.engine import IntArray, LogitRows
from slipstream.worker.frames import StepPlan
from slipstream.worker.graph_shapes import Tiles
from slipstream.worker.slots import SlotTable
from slipstream.worker.staging import HostStep
from slipstream.worker.steady import SteadyBatch


class StepFiller:
    """Fills steps. block_tables: ``[groups, slots, blocks]`` on the device, which has one slot more
    than the host, for padding."""

    def __init__(self, slots: SlotTable, block_tables: torch.Tensor) -> None:
        self._slots = slots
        self._tables = block_tables
        self._padding = block_tables.shape[1] - 1

    def clear(self, host: HostStep) -> None:
        """Makes everything padding."""
        host.token_ids[:] = 0
        host.positions[:] = 0
        host.token_slots[:] = self._padding
        host.decode_rows[:] = -1
        host.tile_rows[:] = -1
        host.sample_rows[:] = 0
        host.sample_slots[:] = self._padding
        host.temperature[:] = 0.0
        host.new_entries[:] = -1

    def decodes(self, host: HostStep, plan: StepPlan, slots: IntArray, rows: LogitRows) -> None:
        """One token of each slot; every row of the batch is a row that is sampled."""
        self.clear(host)
        count = slots.size
        host.token_slots[:count] = slots
        host.decode_rows[:count] = np.arange(count)
        host.decode_slots[:count] = slots
        self._progress(host, plan, slots, rows, samples=True)

    def progress(self, host: HostStep, plan: StepPlan, batch: SteadyBatch) -> None:
        """What ``decodes`` fills otherwise than in an earlier step of the batch."""
        host.new_entries[:] = -1
        self._progress(host, plan, batch.slots, batch.rows, samples=batch.draws)

    def _progress(
        self, host: HostStep, plan: StepPlan, slots: IntArray, rows: LogitRows, *, samples: bool
    ) -> None:
        count, seqs = slots.size, rows.sampled_seqs
        host.token_ids[:count] = plan.token_ids
        host.positions[:count] = plan.first_position
        if samples:
            known = plan.first_position.astype(np.int64) + 1
            self._samples(host, seqs, slots, known, seqs)
        self._new_blocks(host)

    def chunks(
        self, host: HostStep, plan: StepPlan, chunks: Chunks, tiles: Tiles, rows: LogitRows
    ) -> None:
        """Chunks and single tokens; the rows that are sampled come in the order of the plan."""
        self.clear(host)
        starts, sizes, slots, known = chunks
        seqs = rows.sampled_seqs
        decodes = np.flatnonzero(sizes == 1)
        sequence = np.repeat(np.arange(slots.size), sizes)
        count = sequence.size
        host.token_ids[:count] = plan.token_ids
        host.positions[:count] = np.arange(count) + (known - sizes - starts)[sequence]
        host.token_slots[:count] = slots[sequence]
        host.decode_rows[: decodes.size] = starts[decodes]
        host.decode_slots[: decodes.size] = slots[decodes]
        host.tile_rows[: tiles.rows.size] = tiles.rows
        host.tile_sizes[: tiles.rows.size] = tiles.sizes
        host.tile_slots[: tiles.rows.size] = slots[tiles.seqs]
        host.sample_rows[: seqs.size] = (starts + sizes - 1)[seqs]
        self._samples(host, np.arange(seqs.size), slots, known, seqs)
        self._new_blocks(host)

    def _samples(
        self, host: HostStep, places: IntArray, slots: IntArray, known: IntArray, seqs: IntArray
    ) -> None:
        """How ``seqs`` are sampled, at ``places``. known: tokens before the one to sample."""
        chosen = slots[seqs]
        state = self._slots.sampling
        host.sample_slots[places] = chosen
        temperature = state.temperature[chosen]
        host.temperature[places] = temperature
        if temperature.any():
            host.top_k[places] = state.top_k[chosen]
            host.top_p[places] = state.top_p[chosen]
            host.min_p[places] = state.min_p[chosen]
            index = known[seqs] - self._slots.prompt_len[chosen]
            host.uniform[places] = uniform(state.seed[chosen], index)

    def _new_blocks(self, host: HostStep) -> None:
        """Tells the device what the plan has added to block tables."""
        added = self._slots.appended
        if added is None:
            return
        num_groups, num_slots, width = self._tables.shape
        entry = added.slots * width + added.entries
        entries = (np.arange(num_groups)[:, None] * (num_slots * width) + entry).ravel()
        if entries.size <= host.new_entries.size:
            host.new_entries[: entries.size] = entries
            host.new_blocks[: entries.size] = added.block_ids.ravel()
            return
        # A long prefix is reused. A copy from pageable memory would wait for all that is enqueued;
        # torch keeps the pinned memory until the copy is done.
        update = np.stack((entries, added.block_ids.ravel()))
        on_device = torch.from_numpy(update).pin_memory().to(self._tables.device, non_blocking=True)
        self._tables.view(-1).index_copy_(0, on_device[0], on_device[1].int())
