# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (DeepSeek-AI, DeepSeek-V2), computed on the latent vectors."""

from __future__ import annotations

import torch
from torch import nn

from slipstream.layers.norm import Norm
from slipstream.layers.rotary import rotate_
from slipstream.models.attention import LayerInputs
from slipstream.models.spec import ArchSpec


class LatentAttention(nn.Module):
    """Attention whose keys and values all unfold from one short vector a token, which is cached.

    Keys are never unfolded. A head's score is ``q . (U c)``, with c the latent vector and U the
    head's matrix; that is ``(U' q) . c``, so the queries are folded instead, and the weighted sum
    of latents unfolds once into a value. To the cache this is attention with a single KV head.
    """

    def __init__(self, spec: ArchSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        attention = spec.layers[index].attention
        mla = attention.mla
        assert mla is not None
        assert attention.rope is not None
        heads, query_dim = spec.num_heads, mla.no_rope_dim + mla.rope_dim
        self._index = index
        self._spec = mla
        self._heads = heads
        self._rope_style = attention.rope.style

        def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)

        if mla.q_lora_rank is None:
            self.q_b = linear(spec.hidden_size, heads * query_dim)
        else:
            self.q_a = linear(spec.hidden_size, mla.q_lora_rank, attention.qkv_bias)
            self.q_a_norm = Norm(mla.norm, (mla.q_lora_rank,), dtype)
            self.q_b = linear(mla.q_lora_rank, heads * query_dim)
        self.kv_a = linear(spec.hidden_size, mla.cached_dim, attention.qkv_bias)
        self.kv_a_norm = Norm(mla.norm, (mla.kv_lora_rank,), dtype)
        # Of each head, the rows that unfold keys and then those that unfold values.
        unfolded = mla.no_rope_dim + mla.value_dim
        self.kv_b = nn.Parameter(torch.empty(heads, unfolded, mla.kv_lora_rank, dtype=dtype))
        self.output = linear(heads * mla.value_dim, spec.hidden_size, attention.output_bias)

    def forward(self, hidden: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        """hidden: ``[tokens, hidden_size]``, normalised. Returns the same shape."""
        mla = self._spec
        queries = self.q_b(hidden if mla.q_lora_rank is None else self.q_a_norm(self.q_a(hidden)))
        queries = queries.unflatten(-1, (self._heads, -1))
        latent = self.kv_a(hidden)
        keys, values = self.kv_b.split((mla.no_rope_dim, mla.value_dim), dim=1)

        folded = hidden.new_empty(hidden.shape[0], self._heads + 1, mla.cached_dim)
        content, position = folded.split((mla.kv_lora_rank, mla.rope_dim), dim=-1)
        content[:, :-1] = _by_head(queries[..., : mla.no_rope_dim], keys)
        content[:, -1] = self.kv_a_norm(latent[:, : mla.kv_lora_rank])
        position[:, :-1] = queries[..., mla.no_rope_dim :]
        position[:, -1] = latent[:, mla.kv_lora_rank :]
        assert inputs.rope is not None
        rotate_(position, inputs.rope, self._rope_style)

        attended = inputs.plan.run(self._index, folded).view(-1, self._heads, mla.kv_lora_rank)
        out: torch.Tensor = self.output(_by_head(attended, values.transpose(1, 2)).flatten(1))
        return out


def _by_head(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """rows: ``[tokens, heads, in]``; matrices: ``[heads, in, out]``. ``[tokens, heads, out]``."""
    return torch.bmm(rows.transpose(0, 1), matrices).transpose(0, 1)
