# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The attention block of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from slipstream.attention.interface import AttentionPlan
from slipstream.attention.preparation import Preparation, QkNorms
from slipstream.layers.linear import Linear, Residual, Undivided
from slipstream.layers.norm import Norm
from slipstream.layers.rotary import RopeStyle, RopeTables
from slipstream.models.spec import ArchSpec, QkNormSpec


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What a layer needs of a batch besides its hidden states.

    rope: the layer's own tables, None if it uses none. temperature: ``[tokens, 1, 1]`` factors of
    queries, None if the layer has none.
    """

    plan: AttentionPlan
    rope: RopeTables | None
    temperature: torch.Tensor | None


def select_rows(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The rows ``kept`` of x; all of them if that is None."""
    return x if kept is None else x.index_select(0, kept)


class GroupedQueryAttention(nn.Module):
    """Heads of queries that share heads of keys and values, one fused projection."""

    def __init__(self, spec: ArchSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        attention = spec.layers[index].attention
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._index = index
        self._heads, self._kv_heads = heads, kv_heads
        self._shape = (heads + 2 * kv_heads, dim)
        self._rope_style: RopeStyle = attention.rope.style if attention.rope else "halves"
        self.qkv = Linear(
            spec.hidden_size, self._shape[0] * dim, bias=attention.qkv_bias, dtype=dtype
        )
        self.output = Linear(heads * dim, spec.hidden_size, bias=attention.output_bias, dtype=dtype)
        self._qk_norm = attention.qk_norm
        if attention.qk_norm is not None:
            self.q_norm = _qk_norm(attention.qk_norm, heads, dim, dtype)
            self.k_norm = _qk_norm(attention.qk_norm, kv_heads, dim, dtype)
        self.sinks = nn.Parameter(torch.empty(heads, dtype=dtype)) if attention.sinks else None

    def forward(
        self,
        hidden: torch.Tensor | Undivided,
        inputs: LayerInputs,
        kept: torch.Tensor | None = None,
        residual: Residual | None = None,
    ) -> torch.Tensor | Undivided:
        """hidden: ``[tokens, hidden_size]``, normalised. Returns the same shape, or the rows
        ``kept`` of it, which may have joined the residual: see ``Linear.joined``."""
        qkv = self.qkv(hidden).view(-1, *self._shape)
        attended = inputs.plan.run(self._index, qkv, self.sinks, self._preparation(inputs))
        attended = select_rows(attended, kept)
        if residual is not None:
            return self.output.joined(attended, residual)
        out: torch.Tensor = self.output(attended)
        return out

    def _preparation(self, inputs: LayerInputs) -> Preparation:
        norms, spec = None, self._qk_norm
        if spec is not None:
            norms = QkNorms(self.q_norm, self.k_norm, spec.over, spec.after_rope)
        return Preparation(
            self._heads, self._kv_heads, inputs.rope, self._rope_style, norms, inputs.temperature
        )


def _qk_norm(spec: QkNormSpec, heads: int, dim: int, dtype: torch.dtype) -> Norm:
    shapes = {"head": (dim,), "own": (heads, dim), "all": (heads * dim,)}
    return Norm(spec.norm, shapes[spec.over], dtype)
