# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors in the shape in which transformers takes weights that it has not read."""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType

import torch

from slipstream.models.kv_scale_names import kv_scale_of
from slipstream.models.mapped_file import MappedFile
from slipstream.models.stored_tensor import StoredTensor
from slipstream.models.tensor_files import find_tensors

_PIECE = 4 << 20  # elements that are copied before their pages are given back


class StoredWeight:
    """Stands where the library expects a slice of a safetensors file: ``[...]`` reads all of it.

    It is copied out of the memory map piece by piece, so that of the file only a piece is in this
    process's memory at a time, and as ``dtype`` at once where that loses nothing.
    """

    def __init__(self, file: MappedFile, stored: StoredTensor, dtype: torch.dtype) -> None:
        self._file = file
        self._stored = stored
        as_stored: torch.dtype = getattr(torch, stored.dtype)
        widens = as_stored.is_floating_point and torch.promote_types(as_stored, dtype) == dtype
        self._dtype = dtype if widens else as_stored

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        view = self._file.view(self._stored)
        copied = torch.empty(view.shape, dtype=self._dtype)
        if not view.is_contiguous():
            copied.copy_(view)
            self._file.release(self._stored)
            return copied
        pieces = zip(copied.view(-1).split(_PIECE), view.view(-1).split(_PIECE), strict=True)
        for into, part in pieces:
            into.copy_(part)
            self._file.release(self._stored)
        return copied


def stored_weights(
    path: Path, dtype: torch.dtype, *, safetensors_only: bool = False
) -> dict[str, StoredWeight]:
    """The weights of a checkpoint directory by name, scales of a KV cache left out; reads indices
    and headers alone. Raises CheckpointError naming what is missing, damaged or doubled."""
    found = find_tensors(path, safetensors_only=safetensors_only)
    return {
        name: StoredWeight(file, stored, dtype)
        for name, (file, stored) in found.items()
        if kv_scale_of(name) is None
    }
