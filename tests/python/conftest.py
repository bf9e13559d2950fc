# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests.

Where there is no GPU, kernels run in their compiler's interpreter. That is decided when triton is
first imported, which torch does at its leisure: before any test.
"""

import gc
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _short_collections() -> None:
    """Modules, tests and parameters are some 600,000 objects. A full garbage collection that walks
    them stops a test for 0.3 s, which one that times a server would take for the server's."""
    gc.collect()
    gc.freeze()
