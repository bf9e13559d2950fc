# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A file of tensors as a memory map whose pages can be given back."""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path

import torch

from slipstream.models.config_reader import CheckpointError
from slipstream.models.stored_tensor import StoredTensor

# A page that is touched brings its neighbours into our memory, as far as this many aligned bytes.
_NEIGHBOURS = 64 << 10


class MappedFile:
    """Read-only views of a file's tensors."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError if the file cannot be mapped."""
        self.path = path
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path}: {error}") from error

    def view(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor in the memory map, valid as long as it lives. Must not be written to."""
        dtype: torch.dtype = getattr(torch, stored.dtype)
        if not stored.elements:
            return torch.empty(stored.shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no read-only tensors and says so
            flat = torch.frombuffer(self._map, dtype=dtype, count=stored.span, offset=stored.offset)
        return flat.as_strided(stored.shape, stored.strides)

    def release(self, stored: StoredTensor) -> None:
        """Takes the tensor's pages out of this process's memory; touching them brings them back.

        They stay in the page cache, where the kernel finds them or needs their room.
        """
        width: int = getattr(torch, stored.dtype).itemsize
        start = stored.offset // _NEIGHBOURS * _NEIGHBOURS
        end = stored.offset + stored.span * width
        if end > start:
            size = -(-(end - start) // _NEIGHBOURS) * _NEIGHBOURS
            self._map.madvise(mmap.MADV_DONTNEED, start, min(size, len(self._map) - start))
