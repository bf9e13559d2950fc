# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""One buffer that carries all of a step's small arrays to the GPU in one copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
)


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes of a step, padding included: rows of the batch, those that decode, tiles of chunks,
    and rows that are sampled."""

    tokens: int
    decodes: int
    tiles: int
    samples: int

    def fits(self, larger: StepShape) -> bool:
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
        return max(place.stop for _, place, _, _ in self.places())


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

    def __init__(self, buffer: npt.NDArray[np.uint8], shape: StepShape) -> None:
        for name, place, dtype, _ in shape.places():
            setattr(self, name, buffer[place].view(dtype))


class DeviceStep:
    """The arrays of a shape on the device.

    Of each sampled row: the row of the batch, its slot, how it is sampled and the number that
    decides (see ``sampling.draw``). Of each row of the batch: its token (negative: the slot's last
    one), position and slot. The rest is the attention's: see ``DeviceBatch``.
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

    def __init__(self, buffer: torch.Tensor, shape: StepShape) -> None:
        self.shape = shape
        for name, place, _, dtype in shape.places():
            setattr(self, name, buffer[place].view(dtype))


class Staging:
    """Pinned buffers, used in turn, and the device buffer that they are copied to.

    A pinned buffer is filled again only after ``depth`` further steps; the caller has waited for
    the step by then.
    """

    def __init__(self, largest: StepShape, depth: int, device: torch.device) -> None:
        size = largest.nbytes
        self.device_buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self._pinned = [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for _ in range(depth)]
        self._host = [buffer.numpy() for buffer in self._pinned]
        self._turn = 0

    def begin(self, shape: StepShape) -> HostStep:
        """The next host buffer as arrays of this shape, with whatever is in it."""
        self._turn = (self._turn + 1) % len(self._host)
        return HostStep(self._host[self._turn], shape)

    def send(self, shape: StepShape) -> None:
        """Enqueues the copy of what ``begin`` gave."""
        size = shape.nbytes
        pinned = self._pinned[self._turn][:size]
        self.device_buffer[:size].copy_(pinned, non_blocking=True)
