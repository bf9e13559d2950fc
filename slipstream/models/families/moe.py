# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations and checkpoints of mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from slipstream.layers.moe import MoeSpec
from slipstream.models.config_reader import ConfigReader
from slipstream.models.spec import ArchSpec, LayerSpec
from slipstream.models.weights import WeightTable, stack

_FROM = "model.layers.{layer}."
_TO = "layers.{layer}."


def read_experts(config: ConfigReader, *names: str) -> tuple[int, int]:
    """The number of experts, under the first of ``names`` that is there, and how many a token
    takes. Raises CheckpointError."""
    name = next((name for name in names if config.has(name)), names[0])
    count, top_k = config.positive(name), config.positive("num_experts_per_tok")
    if top_k > count:
        raise config.invalid("num_experts_per_tok", f"at most {name} ({count})")
    config.has_only("hidden_act", "silu")
    return count, top_k


def with_moe(
    spec: ArchSpec, moe: MoeSpec, is_sparse: Callable[[int], bool] = lambda layer: True
) -> ArchSpec:
    """The same decoder with a mixture of experts in the layers that ``is_sparse`` names."""

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, mlp=moe) if is_sparse(index) else layer

    return spec.map_layers(change)


def expert_weights(
    block: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> WeightTable:
    """The router and experts of checkpoints with three matrices an expert, under ``block``."""
    expert = _FROM + block + ".experts.{expert}."
    return {
        _TO + "mlp.router": _FROM + block + ".gate",
        _TO + "mlp.experts.gate_up": stack(f"{expert}{gate}.weight", f"{expert}{up}.weight"),
        _TO + "mlp.experts.down": f"{expert}{down}.weight",
    }


def shared_weights(block: str) -> WeightTable:
    """The experts that every token takes, as one block."""
    shared = _FROM + block
    return {
        _TO + "mlp.shared.gate_up": stack(f"{shared}.gate_proj", f"{shared}.up_proj"),
        _TO + "mlp.shared.down": f"{shared}.down_proj",
    }
