# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: a pure function of seed and index, with no state to carry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: UInt64Array) -> UInt64Array:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: UInt64Array = x ^ (x >> np.uint64(31))
    return mixed


def uniform(seed: UInt64Array, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each pair of seed and generated index.

    Arrays of the same shape. Computed on the host, so every device draws the same tokens.
    """
    # Mixing the seed first keeps neighbouring seeds from being shifted copies of one stream.
    stream = _mix(seed + _GOLDEN)
    word = _mix(stream + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    fraction: npt.NDArray[np.float64] = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fraction
