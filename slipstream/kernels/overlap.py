# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Programmatic dependent launch: a kernel's programs start while the kernel before them ends.

What a kernel does before ``await_inputs`` may use nothing that earlier kernels wrote; weights, for
instance, can be on their way by then.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda


@cache
def launch_options() -> dict[str, bool]:
    """Keyword arguments for launches of kernels with a constexpr PDL."""
    able = (
        os.environ.get("TRITON_INTERPRET") != "1"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (9, 0)
    )
    return {"PDL": able, "launch_pdl": able} if able else {"PDL": False}


@triton.jit
def await_inputs(PDL: tl.constexpr):
    """Lets the next kernel's programs start, and waits until all kernels before are done."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
