# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels by rows, on each set of instructions that this processor has."""

from __future__ import annotations

import pytest

from slipstream.layers.rows import RowKernels


@pytest.fixture(scope="module", params=["avx512", "avx2", "generic"])
def kernels(request: pytest.FixtureRequest) -> RowKernels:
    try:
        return RowKernels(2, request.param)
    except ValueError:
        pytest.skip("this processor has not the instructions")
