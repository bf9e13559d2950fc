# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The small arrays of a step, which the GPU reads in the host's memory as its first act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

# Arrays begin at multiples of this: kernels are compiled anew for pointers aligned otherwise.
_ALIGNMENT = 16
# name, NumPy and torch type, which size of the shape
_ARRAYS: tuple[tuple[str, np.dtype, torch.dtype, str], ...] = (
    ("uniform", np.dtype(np.float64), torch.float64, "samples"),
    ("temperature", np.dtype(np.float32), torch.float32, "samples"),
    ("top_k", np.dtype(np.int32), torch.int32, "samples"),
    ("top_p", np.dtype(np.float32), torch.float32, "samples"),
    ("min_p", np.dtype(np.float32), torch.float32, "samples"),
    ("sample_rows", np.dtype(np.int32), torch.int32, "samples"),
    ("sample_slots", np.dtype(np.int32), torch.int32, "samples"),
    ("token_ids", np.dtype(np.int32), torch.int32, "tokens"),
    ("positions", np.dtype(np.int32), torch.int32, "tokens"),
    ("token_slots", np.dtype(np.int32), torch.int32, "tokens"),
    ("decode_rows", np.dtype(np.int32), torch.int32, "decodes"),
    ("decode_slots", np.dtype(np.int32), torch.int32, "decodes"),
    ("tile_rows", np.dtype(np.int32), torch.int32, "tiles"),
    ("tile_sizes", np.dtype(np.int32), torch.int32, "tiles"),
    ("tile_slots", np.dtype(np.int32), torch.int32, "tiles"),
    ("new_entries", np.dtype(np.int32), torch.int32, "new_blocks"),
    ("new_blocks", np.dtype(np.int32), torch.int32, "new_blocks"),
)


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes of a step, padding included: rows of the batch, those that decode, tiles of chunks,
    rows that are sampled, and entries that block tables of all groups get."""

    tokens: int
    decodes: int
    tiles: int
    samples: int
    new_blocks: int = 0

    def fits(self, larger: StepShape) -> bool:
        """Whether a step of this shape can be one of a larger one; new blocks that it has no room
        for can be brought beforehand."""
        return (
            self.tokens <= larger.tokens
            and self.decodes <= larger.decodes
            and self.tiles <= larger.tiles
            and self.samples <= larger.samples
        )

    def places(self) -> Iterator[tuple[str, slice, np.dtype, torch.dtype]]:
        """Where in a buffer each array lies: name, bytes and types."""
        offset = 0
        for name, numpy_dtype, dtype, size in _ARRAYS:
            end = offset + numpy_dtype.itemsize * getattr(self, size)
            yield name, slice(offset, end), numpy_dtype, dtype
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT

    @property
    def nbytes(self) -> int:
        last = max(place.stop for _, place, _, _ in self.places())
        return -(-last // _ALIGNMENT) * _ALIGNMENT


class HostStep:
    """The arrays of a shape in host memory, to be filled; names as in ``DeviceStep``."""

    uniform: npt.NDArray[np.float64]
    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int32]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    sample_rows: npt.NDArray[np.int32]
    sample_slots: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    token_slots: npt.NDArray[np.int32]
    decode_rows: npt.NDArray[np.int32]
    decode_slots: npt.NDArray[np.int32]
    tile_rows: npt.NDArray[np.int32]
    tile_sizes: npt.NDArray[np.int32]
    tile_slots: npt.NDArray[np.int32]
    new_entries: npt.NDArray[np.int32]
    new_blocks: npt.NDArray[np.int32]

    def __init__(self, buffer: npt.NDArray[np.uint8], shape: StepShape) -> None:
        for name, place, dtype, _ in shape.places():
            setattr(self, name, buffer[place].view(dtype))


class DeviceStep:
    """The arrays of a shape on the device.

    Of each sampled row: the row of the batch, its slot, how it is sampled and the number that
    decides (see ``sampling.draw``). Of each row of the batch: its token (negative: the slot's last
    one), position and slot. Of each new block: its place among the entries of all block tables, or
    -1. The rest is the attention's: see ``DeviceBatch``.
    """

    uniform: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    sample_rows: torch.Tensor
    sample_slots: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor
    token_slots: torch.Tensor
    decode_rows: torch.Tensor
    decode_slots: torch.Tensor
    tile_rows: torch.Tensor
    tile_sizes: torch.Tensor
    tile_slots: torch.Tensor
    new_entries: torch.Tensor
    new_blocks: torch.Tensor

    def __init__(self, buffer: torch.Tensor, shape: StepShape) -> None:
        self.shape = shape
        for name, place, _, dtype in shape.places():
            setattr(self, name, buffer[place].view(dtype))


class Staging:
    """Pinned buffers, used in turn, and the device buffer that holds the step that runs.

    A copy engine costs more than these few bytes: the first kernel of a step reads them where they
    are. It finds the buffer whose turn it is by counting the steps it has received, so that one
    CUDA graph serves all. A pinned buffer is filled again only after ``depth`` further steps; the
    caller has waited for the step by then.
    """

    def __init__(self, largest: StepShape, depth: int, device: torch.device) -> None:
        size = largest.nbytes
        self.depth = depth
        self.turn = depth - 1
        self.received = torch.zeros(1, dtype=torch.int64, device=device)
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self._ring = torch.zeros((depth, size), dtype=torch.uint8, pin_memory=device.type != "cpu")
        host = self._ring.numpy()
        # Making the views of a step takes longer than filling them.
        self._view = lru_cache(1024)(lambda turn, shape: HostStep(host[turn], shape))

    def begin(self, shape: StepShape) -> HostStep:
        """The buffer of the step to be enqueued next as arrays of this shape, with whatever is in
        it. ``receive`` must be enqueued once for each."""
        self.turn = (self.turn + 1) % self.depth
        return self._view(self.turn, shape)

    def last_received(self, shape: StepShape) -> DeviceStep:
        """The arrays of the step that was received last, which has this shape."""
        return DeviceStep(self._buffer, shape)

    def receive(self, shape: StepShape, block_tables: torch.Tensor) -> DeviceStep:
        """Enqueues the reading of the oldest step not received yet, which has this shape; its new
        blocks are in ``block_tables`` after it."""
        from slipstream.kernels.step_input import receive_step

        step = self.last_received(shape)
        receive_step(
            self._ring,
            self.received,
            self._buffer[: shape.nbytes],
            step.new_entries,
            step.new_blocks,
            block_tables,
        )
        return step
