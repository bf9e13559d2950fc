# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The decoder: one implementation for every family, parameterised by an ArchSpec."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.attention.interface import AttentionPlan
from slipstream.layers.mlp import GatedMlp
from slipstream.layers.norm import RmsNorm
from slipstream.layers.rotary import RotaryEmbedding, inverse_frequencies, rotate_
from slipstream.models.spec import ArchSpec


class DecoderLayer(nn.Module):
    """Attention and feed-forward block, each normalised before and added to the residual."""

    def __init__(self, spec: ArchSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._index = index
        self._rotated = spec.num_heads + spec.num_kv_heads  # queries and keys
        self._heads = (spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        self.attention_norm = RmsNorm(spec.hidden_size, spec.norm_eps, dtype)
        self.qkv = nn.Linear(
            spec.hidden_size, self._heads[0] * spec.head_dim, bias=spec.qkv_bias, dtype=dtype
        )
        self.output = nn.Linear(
            spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.output_bias, dtype=dtype
        )
        self.mlp_norm = RmsNorm(spec.hidden_size, spec.norm_eps, dtype)
        self.mlp = GatedMlp(spec.hidden_size, spec.intermediate_size, spec.mlp_bias, dtype)

    def forward(
        self,
        hidden: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionPlan,
    ) -> torch.Tensor:
        """hidden: ``[tokens, hidden_size]``, updated in place and returned."""
        qkv = self.qkv(self.attention_norm(hidden)).view(-1, *self._heads)
        rotate_(qkv[:, : self._rotated], *rope)
        hidden += self.output(attention.run(self._index, qkv))
        hidden += self.mlp(self.mlp_norm(hidden))
        return hidden


class Decoder(nn.Module):
    """Token ids in, hidden states and logits out. KV lives outside, behind the attention plan."""

    def __init__(self, spec: ArchSpec, dtype: torch.dtype) -> None:
        """Allocates parameters on the current default device, uninitialised."""
        super().__init__()
        self.spec = spec
        self.dtype = dtype
        rope = spec.rope
        self.rotary = RotaryEmbedding(
            inverse_frequencies(
                spec.head_dim,
                rope.theta,
                rope.kind,
                factor=rope.factor,
                low_freq_factor=rope.low_freq_factor,
                high_freq_factor=rope.high_freq_factor,
                original_max_positions=rope.original_max_positions,
            ),
            dtype,
        )
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(
            DecoderLayer(spec, index, dtype) for index in range(spec.num_layers)
        )
        self.norm = RmsNorm(spec.hidden_size, spec.norm_eps, dtype)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False, dtype=dtype)

    def tie_weights(self) -> None:
        """Makes the output matrix the embedding's, where the spec says so."""
        if self.spec.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionPlan
    ) -> torch.Tensor:
        """token_ids, positions: ``[tokens]``. Returns ``[tokens, hidden_size]``, not normalised."""
        hidden: torch.Tensor = self.embedding(token_ids)
        rope = self.rotary.tables(positions)
        for layer in self.layers:
            hidden = layer(hidden, rope, attention)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and output matrix: ``[rows, hidden_size]`` to float32 ``[rows, vocab]``."""
        return F.linear(self.norm(hidden), self.lm_head.weight).float()
