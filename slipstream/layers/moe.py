# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a mixture of experts is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slipstream.layers.mlp import MlpSpec


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A router, ``num_experts`` feed-forward blocks of which a token takes ``top_k``, and perhaps
    one that every token takes.

    ``router``: what turns router outputs into scores, and whether before or after the choice.
    ``normalise``: the chosen scores are divided by their sum. ``scale_input``: scores multiply what
    goes into an expert instead of what comes out. ``groups`` of experts compete first and
    ``top_groups`` of them stay. ``correction_bias`` is added to scores for the choice alone.
    """

    expert: MlpSpec
    num_experts: int
    top_k: int
    router: Literal["softmax", "softmax_after_top_k", "sigmoid"] = "softmax"
    normalise: bool = False
    score_scale: float = 1.0
    scale_input: bool = False
    shared: MlpSpec | None = None
    groups: int = 1
    top_groups: int = 1
    correction_bias: bool = False
    router_bias: bool = False
    interleaved_gate_up: bool = False
    clamp: float | None = None
