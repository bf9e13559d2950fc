# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A decoder whose tokens do not depend on the others of their batch, down to the last bit."""

from __future__ import annotations

from torch import nn

from slipstream.layers.experts import Experts
from slipstream.layers.linear import GatedLinear, Linear, PlainLinear
from slipstream.layers.mlp import GatedMlp, PlainMlp
from slipstream.layers.moe import MoeBlock, TokenGate
from slipstream.layers.norm import Norm
from slipstream.layers.router import Router
from slipstream.layers.rows import DTYPE_NAMES, RowKernels
from slipstream.models.attention import GroupedQueryAttention
from slipstream.models.decoder import Decoder, DecoderLayer, PositionTables
from slipstream.models.latent_attention import LatentAttention
from slipstream.models.served import ServedSpec
from slipstream.models.spec import ArchSpec

# Those whose operations have all been looked at: what takes a sum or a function of floating point
# numbers runs on RowKernels, what is left are copies and single additions and multiplications.
_TAKES_ROWS = (
    Decoder,
    DecoderLayer,
    Experts,
    GatedLinear,
    LatentAttention,
    Linear,
    Norm,
    PlainLinear,
    PositionTables,
    Router,
    TokenGate,
)
_EXACT = (
    GatedMlp,
    GroupedQueryAttention,
    MoeBlock,
    nn.Embedding,
    nn.Identity,
    nn.ModuleList,
    PlainMlp,
)


def row_obstacle(
    spec: ServedSpec, dtype: str, device: str, kv_cache_dtype: str, attention_backend: str
) -> str | None:
    """Why the tokens of a model so served depend on each other; None if ``make_rows_apart`` helps.

    dtype: a name such as ``bfloat16``; device: ``cpu`` or ``cuda...``; kv_cache_dtype and
    attention_backend: the options.
    """
    name = spec.architecture
    if device != "cpu":
        return f"it is served on a CPU alone, and the device is {device}"
    if dtype not in DTYPE_NAMES:
        return f"it is served in {' and '.join(DTYPE_NAMES)}, and dtype is {dtype}"
    if kv_cache_dtype != "auto":
        return (
            "it is served with a KV cache of the model's dtype, and kv_cache_dtype is "
            f"{kv_cache_dtype!r}"
        )
    if attention_backend != "auto":
        return (
            "it is served with attention kernels of its own, and attention_backend is "
            f"{attention_backend!r}"
        )
    if not isinstance(spec, ArchSpec):
        return f"{name} runs on transformers' own forward, whose products depend on the batch"
    return None


def make_rows_apart(decoder: Decoder, kernels: RowKernels) -> None:
    """From now on ``decoder``, to which there is no obstacle, computes every token by itself."""
    for module in decoder.modules():
        if isinstance(module, _TAKES_ROWS):
            module.rows = kernels
            if isinstance(module, LatentAttention):
                module.transpose_keys()
        else:
            assert isinstance(module, _EXACT), f"{type(module).__name__}: look at its operations"
    for rope in decoder.positions.ropes.values():
        rope.by_rows = True
