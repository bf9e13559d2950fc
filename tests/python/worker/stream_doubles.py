# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``stream_decode`` as torch computes it, from the very arguments that it gets."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import Any

import torch

from slipstream.kernels.decode_schedule import DecodeSchedule
from slipstream.kernels.paged_decode import DecodeWorkspace
from slipstream.kernels.qkv import Unprepared, prepare_qkv


class TorchStreamDecode:
    """As ``launch_stream_decode``. launches: so far; new: those of them that had to prepare their
    queries and keys; parts: most that a sequence came in."""

    def __init__(self) -> None:
        self.launches = self.new = self.parts = 0

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        block_tables: torch.Tensor,
        out: torch.Tensor,
        sinks: torch.Tensor | None,
        schedule: DecodeSchedule,
        workspace: DecodeWorkspace,
        inner: float,
        factor: float,
        value_scale: float,
        *,
        tile: int,
        compiled_for: dict[str, Any],
        new: Unprepared | None = None,
    ) -> None:
        assert sinks is None
        assert not compiled_for["SOFT_CAP"]
        assert schedule.programs is not None
        programs = schedule.programs.tolist()
        self.launches += 1
        if new is not None:
            self.new += 1
            q = self._prepared(q, pool, new)
        group, per_block = compiled_for["GROUP"], compiled_for["PER_BLOCK"]
        seen: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
        for item in (i for first, last in programs for i in range(first, last)):
            row, slot, end, head, begin_tile, end_tile, _, parts = schedule.items[item].tolist()
            first = 0
            if compiled_for["MASK"] == "sliding":
                first = max(end - compiled_for["MASK_SIZE"], 0)
            positions = torch.arange(
                max(begin_tile * tile, first), min(end_tile * tile, end), device=q.device
            )
            blocks = block_tables[slot, positions // per_block].long()
            seen[row, head].append(pool[blocks, :, head, positions % per_block])
            self.parts = max(self.parts, parts)
        for (row, head), parts_of in seen.items():
            keys, values = torch.cat(parts_of).float().unbind(1)
            heads = slice(head * group, (head + 1) * group)
            weights = torch.softmax(q[row, heads].float() @ keys.T * factor * 0.6931471805599453, 1)
            result = (weights @ values * value_scale).to(out.dtype)
            out[row].view(-1, q.shape[2])[heads] = result

    @staticmethod
    def _prepared(q: torch.Tensor, pool: torch.Tensor, new: Unprepared) -> torch.Tensor:
        """The queries; stores keys and values, which follow them."""
        tokens, heads, dim = q.shape
        kv_heads, shape = pool.shape[2], (tokens, heads + 2 * pool.shape[2], dim)
        qkv = q.as_strided(shape, q.stride(), q.storage_offset())
        queries = torch.empty(q.shape, dtype=q.dtype)
        options = {field.name: getattr(new, field.name) for field in fields(new)}
        prepare_qkv(qkv, pool, **options, kv_heads=kv_heads, q_out=queries)
        return queries
