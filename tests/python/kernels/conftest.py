# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Kernels run in an interpreter where there is no GPU."""

import contextlib

import torch
from triton_interpreter import mend_interpreter

if not torch.cuda.is_available():
    with contextlib.suppress(ImportError):
        mend_interpreter()
