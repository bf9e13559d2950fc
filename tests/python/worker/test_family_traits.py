# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What makes a family itself is felt: without it the logits are others.

A trait that the tiny checkpoints do not exercise would be proved by nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from family_serving import (
    PROMPT,
    TOLERANCE,
    Served,
    context_logits,
    error_of,
    random_tokens,
)
from worker_testing import Driver, config

from slipstream.attention.interface import FULL
from slipstream.layers.norm import NormSpec
from slipstream.models.checkpoint import Checkpoint
from slipstream.models.loader import load_decoder
from slipstream.models.spec import ArchSpec, AttentionSpec
from slipstream.worker.startup import make_runner


def attention(change: Callable[[AttentionSpec], AttentionSpec]) -> Callable[[ArchSpec], ArchSpec]:
    return lambda spec: spec.map_layers(
        lambda _, layer: replace(layer, attention=change(layer.attention))
    )


def rope(**changes: Any) -> Callable[[ArchSpec], ArchSpec]:
    return attention(lambda a: replace(a, rope=a.rope and replace(a.rope, **changes)))


def scores(**changes: Any) -> Callable[[ArchSpec], ArchSpec]:
    return attention(lambda a: replace(a, scores=replace(a.scores, **changes)))


def everywhere_rotated(spec: ArchSpec) -> ArchSpec:
    some = next((a.rope for a in map(_attention, spec.layers) if a.rope), None)
    return attention(lambda a: replace(a, rope=a.rope or some))(spec)


def rotated_alike(spec: ArchSpec) -> ArchSpec:
    first = spec.layers[0].attention.rope
    return attention(lambda a: replace(a, rope=a.rope and first))(spec)


def whole_head(spec: ArchSpec) -> ArchSpec:
    some = spec.layers[0].attention.rope
    partial = some is not None and some.dim < spec.head_dim
    return rope(dim=spec.head_dim, scaling=None)(spec) if partial else spec


def other_activation(spec: ArchSpec) -> ArchSpec:
    other = "relu" if spec.layers[0].mlp.activation == "silu" else "silu"
    return spec.map_layers(
        lambda _, layer: replace(layer, mlp=replace(layer.mlp, activation=other))
    )


def normed_after_rope(a: AttentionSpec) -> AttentionSpec:
    return replace(a, qk_norm=a.qk_norm and replace(a.qk_norm, after_rope=True))


def small_epsilon(norm: NormSpec) -> NormSpec:
    return replace(norm, eps=1e-6)


def small_qk_epsilon(a: AttentionSpec) -> AttentionSpec:
    return replace(a, qk_norm=a.qk_norm and replace(a.qk_norm, norm=small_epsilon(a.qk_norm.norm)))


def _attention(layer: Any) -> AttentionSpec:
    return layer.attention


# Each gives the same spec back where a family has not got the trait.
WITHOUT: dict[str, Callable[[ArchSpec], ArchSpec]] = {
    "windows": scores(mask=FULL),
    "soft cap": scores(soft_cap=None),
    "score scale": attention(
        lambda a: replace(a, scores=replace(a.scores, scale=a.scores.scale * 1.5))
    ),
    "rope theta": rope(theta=77.0),
    "rope scaling": rope(scaling=None),
    "rope in pairs": rope(style="halves"),
    "partial rope": whole_head,
    "layers without rope": everywhere_rotated,
    "rope by layer": rotated_alike,
    "QK norm before rope": attention(normed_after_rope),
    "QK epsilon": attention(small_qk_epsilon),
    "epsilon": lambda spec: replace(spec, norm=small_epsilon(spec.norm)),
    "activation": other_activation,
    "residual scale": lambda spec: replace(spec, block=replace(spec.block, residual_scale=1.0)),
    "embedding scale": lambda spec: replace(spec, embedding_scale=1.0),
    "logit scale": lambda spec: replace(spec, logit_scale=1.0),
    "logit soft cap": lambda spec: replace(spec, logit_soft_cap=None),
}


def test_traits_are_felt(served: Served) -> None:
    prompt = random_tokens(PROMPT, seed=3)
    whole = context_logits(served.driver(), prompt, PROMPT)
    checkpoint = Checkpoint(served.path)
    own, felt = checkpoint.spec, {}
    for name, without in WITHOUT.items():
        checkpoint.spec = without(own)
        if checkpoint.spec == own:
            continue
        decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"))
        driver = Driver(make_runner(config(served.path, kv_cache_tokens=256), decoder))
        felt[name] = error_of(context_logits(driver, prompt, PROMPT), whole)
    assert len(felt) >= 3
    assert {name: error for name, error in felt.items() if not error > 20 * TOLERANCE} == {}
