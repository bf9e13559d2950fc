# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A transformers model in the shape of a decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.attention.interface import AttentionPlan
from slipstream.models.attention import select_rows
from slipstream.models.fallback.bridge import AttentionCall, Bridge
from slipstream.models.fallback.probe import LayerCall, Probe
from slipstream.models.fallback.spec import FallbackSpec


class FallbackDecoder:
    """The library's model, called on one flat row with the tokens of many sequences.

    The module that holds its layers is the body; what the model's forward does after it is the
    head, so that scaling and soft-capping of logits are the model's own. See ServedModel.
    """

    def __init__(
        self,
        model: nn.Module,
        bridge: Bridge,
        probe: Probe,
        spec: FallbackSpec,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.model = model
        self.dtype = dtype
        self.bridge = bridge
        self._probe = probe
        self._body = model.get_submodule(probe.body.path)
        self._given = _Given(probe.body.output)
        self._head = _with_module(model, probe.body.path, self._given)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionPlan,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ServedModel; computes all rows."""

        def now(value: Any) -> Any:
            if value is self._probe.token_ids:
                return token_ids[None]
            return positions[None] if value is self._probe.positions else value

        call = self._probe.body
        layers = PagedLayers(attention, self._probe.layers, self.spec, self.dtype)
        with self.bridge.handled_by(layers.attend):
            output = self._body(
                *map(now, call.args), **{name: now(value) for name, value in call.kwargs.items()}
            )
        assert layers.done, "the model skipped layers"
        hidden: torch.Tensor = output[0][0]
        return select_rows(hidden, kept)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of hidden states ``[rows, hidden_size]`` to float32 ``[rows, vocab]``."""
        self._given.hidden = hidden[None]
        unread = torch.zeros((1, hidden.shape[0]), dtype=torch.int64, device=hidden.device)
        logits: torch.Tensor = self._head(input_ids=unread, use_cache=False).logits[0].float()
        return logits


class PagedLayers:
    """Runs the attention calls of one forward, layer by layer in the order of the probe."""

    def __init__(
        self,
        plan: AttentionPlan,
        layers: tuple[LayerCall, ...],
        spec: FallbackSpec,
        dtype: torch.dtype,
    ) -> None:
        self._plan = plan
        self._layers = layers
        self._next = 0
        self._dtype = dtype
        self._shape = (spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim)

    @property
    def done(self) -> bool:
        return self._next == len(self._layers)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """See Handler: ``[tokens, heads, value_dim]``."""
        index, layer = self._next, self._layers[self._next]
        self._next += 1
        groups = layer.heads // layer.kv_heads
        query = self._fit(call.query, groups, self._shape[1])
        key, value = self._fit(call.key, 1, 1), self._fit(call.value, 1, 1)
        sinks = call.options["s_aux"] if layer.sinks else None
        if sinks is not None:
            kv_heads, most = self._shape[0] - layer.kv_heads, self._shape[1] - groups
            sinks = F.pad(sinks.view(layer.kv_heads, groups), (0, most, 0, kv_heads)).flatten()
        attended = self._plan.run(index, torch.cat((query, key, value), 1), sinks)
        attended = attended.view(-1, *self._shape)
        attended = attended[:, : layer.kv_heads, :groups, : layer.value_dim].flatten(1, 2)
        return attended.to(call.value.dtype)

    def _fit(self, heads: torch.Tensor, group: int, groups: int) -> torch.Tensor:
        """``[1, heads, tokens, dim]`` as ``[tokens, heads, dim]`` of the cache.

        What is added are zeros: they add nothing to scores, and their results are not read.
        """
        rows = heads[0].transpose(0, 1).to(self._dtype)
        kv_heads, _, dim = self._shape
        missing = (kv_heads - rows.shape[1] // group, groups - group, dim - rows.shape[2])
        if any(missing):
            rows = rows.unflatten(1, (-1, group))
            rows = F.pad(rows, (0, missing[2], 0, missing[1], 0, missing[0])).flatten(1, 2)
        return rows


class _Given(nn.Module):
    """Stands for a body whose hidden states are there already: ``hidden`` is what it returns."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self._kind = type(output)
        self._field = next(iter(output)) if isinstance(output, dict) else None

    def forward(self, *_: Any, **__: Any) -> Any:
        hidden, self.hidden = self.hidden, None  # nothing is kept from one step to the next
        return self._kind(**{self._field: hidden}) if self._field else (hidden,)


def _with_module(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A copy of ``root`` that shares everything with it but the submodule at ``path``."""
    clone = copy.copy(root)
    clone._modules = dict(root._modules)
    name, _, rest = path.partition(".")
    child = root.get_submodule(name)
    clone._modules[name] = _with_module(child, rest, module) if rest else module
    return clone
