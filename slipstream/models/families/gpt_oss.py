# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""GPT-OSS: attention sinks, every other layer with a window, experts in MXFP4 or not."""

from __future__ import annotations

import torch

from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.norm import NormSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.families import llama
from slipstream.models.families.common import read_masks, read_spec, with_masks
from slipstream.models.families.moe import read_experts, with_moe
from slipstream.models.family import Family
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightRule
from slipstream.quantization.mxfp4 import dequantize

_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def arch_spec(config: ConfigReader, architecture: str) -> ArchSpec:
    config.child("quantization_config").has_only("quant_method", "mxfp4")
    config = config.with_values(quantization_config=None).with_defaults(
        attention_bias=True,
        head_dim=64,
        max_position_embeddings=131072,
        num_experts_per_tok=4,
        num_key_value_heads=8,
        num_local_experts=128,
        rope_theta=150000.0,
        sliding_window=128,
    )
    if not config.has("rope_parameters") and not config.has("rope_scaling"):
        config = config.with_values(rope_scaling=_YARN)
    norm = NormSpec(config.positive_float("rms_norm_eps", 1e-5), float32_weight=True)
    spec = read_spec(config, architecture, norm=norm, windows=True).with_attention(sinks=True)
    spec = with_masks(spec, read_masks(config, spec.num_layers, lambda index: index % 2 == 0))
    count, top_k = read_experts(config, "num_local_experts")
    router = RouterSpec(count, top_k, score_chosen=True, bias=True)
    experts = ExpertsSpec(
        config.positive("intermediate_size"),
        "clamped_swiglu",
        alpha=config.positive_float("swiglu_alpha", 1.702),
        limit=config.positive_float("swiglu_limit", 7.0),
        bias=True,
    )
    return with_moe(spec, MoeSpec(router, experts))


def _split(rows: torch.Tensor) -> torch.Tensor:
    """Gate rows and up rows, which checkpoints hold in turns, one after the other."""
    return torch.cat((rows[:, ::2], rows[:, 1::2]), dim=1)


def _experts(name: str, *, interleaved: bool) -> WeightRule:
    """Matrices as MXFP4 blocks and scales, or whole and transposed."""
    arrange = _split if interleaved else torch.Tensor.contiguous
    stored = _FROM + f"mlp.experts.{name}"
    return WeightRule(
        (stored + "_blocks", stored + "_scales"),
        # bfloat16 holds every value of the format.
        lambda tensors, spec: arrange(dequantize(tensors[0], tensors[1], torch.bfloat16)),
        WeightRule((stored,), lambda tensors, spec: arrange(tensors[0].transpose(1, 2))),
    )


WEIGHTS = {
    **llama.WEIGHTS,
    _TO + "attention.sinks": _FROM + "self_attn.sinks",
    _TO + "mlp.router": _FROM + "mlp.router",
    _TO + "mlp.experts.gate_up": _experts("gate_up_proj", interleaved=True),
    _TO + "mlp.experts.gate_up_bias": WeightRule(
        (_FROM + "mlp.experts.gate_up_proj_bias",), lambda tensors, spec: _split(tensors[0])
    ),
    _TO + "mlp.experts.down": _experts("down_proj", interleaved=False),
    _TO + "mlp.experts.down_bias": _FROM + "mlp.experts.down_proj_bias",
}

FAMILY = Family("GPT-OSS", ("GptOssForCausalLM",), arch_spec, WEIGHTS)
