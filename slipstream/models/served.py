# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What serving needs of a model, whoever computes it."""

from __future__ import annotations

from typing import Protocol

import torch

from slipstream.attention.interface import AttentionPlan, ScoreSpec


class ServedSpec(Protocol):
    """A model's sizes and limits.

    One ``scores`` for each layer of the KV cache, every one of them with ``num_kv_heads`` heads of
    ``head_dim``, of which the first ``latent_dim`` are the value as well (None: values are cached
    apart). ``dtype`` is the checkpoint's (None: not said), ``pad_id`` -1 if it has none.
    """

    @property
    def architecture(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def latent_dim(self) -> int | None: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def scores(self) -> tuple[ScoreSpec, ...]: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def end_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_id(self) -> int: ...


class ServedModel(Protocol):
    """Token ids in, hidden states and logits out. KV lives outside, behind the attention plan."""

    @property
    def spec(self) -> ServedSpec: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def weight_bytes(self) -> int: ...

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionPlan,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """token_ids, positions: ``[tokens]``; kept: the rows that are wanted, None: all.
        Returns ``[tokens, hidden_size]`` or as many rows as are kept, in their order."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of hidden states ``[rows, hidden_size]`` to float32 ``[rows, vocab]``."""
        ...
