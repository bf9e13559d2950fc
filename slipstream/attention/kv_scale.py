# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values in eight bits: e4m3 times a scale (Micikevicius et al., FP8 Formats for Deep
Learning).

What is stored is ``x / scale``, saturated and rounded to nearest even; it is read as
``stored * scale``. Readers leave the scales out of the values themselves: that of keys joins the
scale of the scores, that of values multiplies the finished sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest e4m3 value


@dataclass(frozen=True, slots=True)
class KvScale:
    """One layer's scales, finite and positive. Caches of other types than FP8 have none."""

    key: float = 1.0
    value: float = 1.0


UNSCALED = KvScale()


def to_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x / scale`` in FP8, computed in float32. scale: float32, broadcast against x.

    What is beyond the largest value becomes that value; NaN stays NaN.
    """
    return (x.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
