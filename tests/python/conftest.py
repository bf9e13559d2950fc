# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Where there is no GPU, kernels run in their compiler's interpreter.

That is decided when triton is first imported, which torch does at its leisure: before any test.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
