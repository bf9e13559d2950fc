# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What queries and keys need between their projection and the attention itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slipstream.layers.norm import Norm
from slipstream.layers.rotary import RopeStyle, RopeTables, rotate_


@dataclass(frozen=True, slots=True)
class QkNorms:
    """``over`` "all": all heads of a token together; else every head by itself."""

    queries: Norm
    keys: Norm
    over: str
    after_rope: bool


@dataclass(frozen=True, slots=True)
class Preparation:
    """Norms and rotation of queries and keys, then a factor ``[tokens, 1, 1]`` of queries.

    It travels to the attention, which may do all of it in the kernel that stores keys and values.
    """

    heads: int
    kv_heads: int
    rope: RopeTables | None
    style: RopeStyle
    norms: QkNorms | None
    factor: torch.Tensor | None

    def apply_(self, qkv: torch.Tensor) -> None:
        """qkv: ``[tokens, heads + 2 * kv_heads, head_dim]``, in place."""
        norms = self.norms
        if norms is not None and not norms.after_rope:
            self._normalise_(qkv, norms)
        if self.rope is not None:
            rotate_(qkv[:, : self.heads + self.kv_heads], self.rope, self.style)
        if norms is not None and norms.after_rope:
            self._normalise_(qkv, norms)
        if self.factor is not None:
            qkv[:, : self.heads].mul_(self.factor)

    def _normalise_(self, qkv: torch.Tensor, norms: QkNorms) -> None:
        queries = qkv[:, : self.heads]
        keys = qkv[:, self.heads : self.heads + self.kv_heads]
        for part, norm in ((queries, norms.queries), (keys, norms.keys)):
            if norms.over == "all":
                part.copy_(norm(part.flatten(1)).view_as(part))
            else:
                part.copy_(norm(part))
