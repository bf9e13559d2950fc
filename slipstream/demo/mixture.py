# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo model's twin with experts, and how its experts are trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

EXPERTS = 8
TOP_K = 2
_TRAINING = "every_expert"


def make_mixture(**sizes: Any) -> Qwen3MoeForCausalLM:
    """A Qwen3-MoE of 3.6 M parameters, 1.9 M of them used by a token; 8 experts, 2 a token.

    `sizes` are fields of the configuration: the vocabulary, token ids and lengths. The model is set
    up to train: see `every_expert`.
    """
    config = Qwen3MoeConfig(
        hidden_size=192,
        intermediate_size=320,
        moe_intermediate_size=80,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        num_attention_heads=4,
        num_key_value_heads=2,
        **{"head_dim": 64, **sizes},
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation(_TRAINING)
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = _WatchedRouter
    return model


class _WatchedRouter(Qwen3MoeTopKRouter):
    """Keeps how uneven the load of its last batch was.

    transformers gets at router logits by hooks, which torch.compile does not take.
    """

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, scores, indices = super().forward(hidden)
        chosen = torch.zeros_like(logits, dtype=torch.float32).scatter(1, indices, 1.0)
        self.unevenness = (
            EXPERTS / TOP_K * (chosen.mean(0) * logits.float().softmax(-1).mean(0)).sum()
        )
        return logits, scores, indices


def unevenness(model: Qwen3MoeForCausalLM) -> torch.Tensor:
    """How uneven the load of experts was in the last batch, as the mean over layers: from 1, even,
    to `EXPERTS / TOP_K` (after Fedus et al., Switch Transformers, equation 4)."""
    routers: list[Any] = [layer.mlp.gate for layer in model.model.layers]
    return torch.stack([router.unevenness for router in routers]).mean()


def every_expert(
    experts: Any,
    hidden: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Runs all experts for all tokens and weighs those that a token did not choose with 0.

    hidden: `[tokens, hidden_size]`; index and weights: `[tokens, TOP_K]`. For experts so small two
    products over all of them are faster than many over few, and torch.compile takes them whole.
    """
    weights = hidden.new_zeros(hidden.shape[0], EXPERTS)
    weights = weights.scatter(1, top_k_index, top_k_weights.to(hidden.dtype))
    gate_up = hidden @ experts.gate_up_proj.flatten(0, 1).t()
    inner = experts._apply_gate(gate_up.unflatten(-1, (EXPERTS, -1)))
    inner = (inner * weights[..., None]).flatten(1)
    return inner @ experts.down_proj.transpose(1, 2).flatten(0, 1)


ALL_EXPERTS_FUNCTIONS.register(_TRAINING, every_expert)
