# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (DeepSeek-AI, DeepSeek-V2), computed on the latent vectors."""

from __future__ import annotations

import torch
from torch import nn

from slipstream.layers.expert_rows import multiply
from slipstream.layers.linear import PlainLinear
from slipstream.layers.norm import Norm
from slipstream.layers.rotary import rotate_
from slipstream.layers.rows import RowKernels
from slipstream.models.attention import LayerInputs, select_rows
from slipstream.models.spec import ArchSpec


class LatentAttention(nn.Module):
    """Attention whose keys and values all unfold from one short vector a token, which is cached.

    Keys are never unfolded. A head's score is ``q . (U c)``, with c the latent vector and U the
    head's matrix; that is ``(U' q) . c``, so the queries are folded instead, and the weighted sum
    of latents unfolds once into a value. To the cache this is attention with a single KV head.
    ``rows``: set if no token may depend on the others.
    """

    rows: RowKernels | None = None

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

        def linear(inputs: int, outputs: int, bias: bool = False) -> PlainLinear:
            return PlainLinear(inputs, outputs, bias=bias, dtype=dtype)

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
        self._fold: torch.Tensor | None = None

    def forward(
        self, hidden: torch.Tensor, inputs: LayerInputs, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        """hidden: ``[tokens, hidden_size]``, normalised. Returns the same shape, or the rows
        ``kept`` of it."""
        mla = self._spec
        queries = self.q_b(hidden if mla.q_lora_rank is None else self.q_a_norm(self.q_a(hidden)))
        queries = queries.unflatten(-1, (self._heads, -1))
        latent = self.kv_a(hidden)

        folded = hidden.new_empty(hidden.shape[0], self._heads + 1, mla.cached_dim)
        content, position = folded.split((mla.kv_lora_rank, mla.rope_dim), dim=-1)
        content[:, :-1] = self._folded(queries[..., : mla.no_rope_dim])
        content[:, -1] = self.kv_a_norm(latent[:, : mla.kv_lora_rank])
        position[:, :-1] = queries[..., mla.no_rope_dim :]
        position[:, -1] = latent[:, mla.kv_lora_rank :]
        assert inputs.rope is not None
        rotate_(position, inputs.rope, self._rope_style)

        attended = select_rows(inputs.plan.run(self._index, folded), kept)
        attended = attended.view(-1, self._heads, mla.kv_lora_rank)
        out: torch.Tensor = self.output(self._unfolded(attended).flatten(1))
        return out

    def transpose_keys(self) -> None:
        """For ``rows``, whose kernels read a matrix by the rows of its result; takes memory."""
        self._fold = self.kv_b.detach()[:, : self._spec.no_rope_dim].transpose(1, 2).contiguous()

    def _folded(self, queries: torch.Tensor) -> torch.Tensor:
        """``[tokens, heads, no_rope_dim]`` to ``[tokens, heads, kv_lora_rank]``."""
        if self.rows is None:
            keys = self.kv_b[:, : self._spec.no_rope_dim]
            return torch.bmm(queries.transpose(0, 1), keys).transpose(0, 1)
        assert self._fold is not None
        return _by_head(self.rows, queries, self._fold)

    def _unfolded(self, latents: torch.Tensor) -> torch.Tensor:
        """``[tokens, heads, kv_lora_rank]`` to ``[tokens, heads, value_dim]``."""
        values = self.kv_b[:, self._spec.no_rope_dim :]
        if self.rows is None:
            return torch.bmm(latents.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)
        return _by_head(self.rows, latents, values)


def _by_head(kernels: RowKernels, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """x: ``[tokens, heads, in]``; matrices: ``[heads, out, in]``. ``[tokens, heads, out]``: heads
    are to their matrices as rows are to their experts'."""
    tokens, heads, size = x.shape
    segments = [(head, head * tokens, (head + 1) * tokens) for head in range(heads)]
    out = multiply(kernels, x.transpose(0, 1).reshape(-1, size), matrices, None, segments)
    return out.view(heads, tokens, -1).transpose(0, 1)
