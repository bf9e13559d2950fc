# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a layer's tensors are where the kernels of ours run."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


def has_kernels(device: torch.device) -> bool:
    """Whether ``slipstream.kernels`` can be used there: an NVIDIA GPU of compute capability 8.0 or
    more, with the compiler that comes with torch for it."""
    return device.type == "cuda" and _compiles_for(device)


@cache
def _compiles_for(device: torch.device) -> bool:
    able = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return able and importlib.util.find_spec("triton") is not None
