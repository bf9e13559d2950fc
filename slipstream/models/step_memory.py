# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a step takes beside weights and KV cache, roughly, from a model's shape."""

from __future__ import annotations

from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.models.spec import ArchSpec, AttentionSpec

_LOGIT_BYTES = 4


def step_bytes(spec: ArchSpec, value_bytes: int, tokens: int, sequences: int) -> int:
    """The widest moment of a layer for all ``tokens``, or the logits of all ``sequences``.

    value_bytes: of an activation. Mixtures of experts are taken as a GPU's kernels compute them.
    """
    hidden = spec.hidden_size
    # The residual, a layer's last branch and its input are there from the beginning; attention's
    # branch and its norm when the MLP computes.
    widest = max(
        max(
            3 * hidden + _attention(spec, layer.attention),
            5 * hidden + _feed_forward(hidden, layer.mlp),
        )
        for layer in spec.layers
    )
    logit = _LOGIT_BYTES + (value_bytes if value_bytes != _LOGIT_BYTES else 0)  # converted, if not
    logits = tokens * hidden * value_bytes + sequences * spec.vocab_size * logit
    return max(tokens * widest * value_bytes, logits)


def _attention(spec: ArchSpec, attention: AttentionSpec) -> int:
    """Values of a token: queries, keys and values, and what comes out."""
    if (mla := attention.mla) is not None:
        head = mla.no_rope_dim + mla.rope_dim + mla.cached_dim + mla.kv_lora_rank
        return spec.num_heads * head + 2 * mla.cached_dim
    return 2 * (spec.num_heads + spec.num_kv_heads) * spec.head_dim


def _feed_forward(hidden: int, mlp: MlpSpec | MoeSpec) -> int:
    """Values of a token: what gate and up give, and their product. Of each expert that it chose:
    the product, and what comes out."""
    if isinstance(mlp, MlpSpec):
        return (3 if mlp.gated else 2) * mlp.intermediate_size
    experts = mlp.router.top_k * (mlp.experts.intermediate_size + hidden)
    shared = hidden + _feed_forward(hidden, mlp.shared) if mlp.shared is not None else 0
    return max(experts, shared)
