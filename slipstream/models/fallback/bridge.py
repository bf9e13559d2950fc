# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the layers of a transformers model meet an attention of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Names in transformers' table of attention functions. Without a mask function of the same name no
# masks are made; while probing, the masks that a model asks for tell what its layers see.
PAGED = "slipstream"
PROBED = "slipstream_probe"
OWN = "eager"  # every model's own, by its definition

_BRIDGE = "slipstream_bridge"  # attribute of the modules of a bridged model


@dataclass(frozen=True, slots=True)
class WantedMask:
    """A mask that a model asked for: which keys k a query q sees, ``visible(0, 0, q, k)``.

    ``size`` is the window or chunk, None if there is neither.
    """

    visible: Callable[..., torch.Tensor]
    size: int | None


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """A layer's call.

    query: ``[1, heads, tokens, dim]``; key, value: ``[1, kv_heads, tokens, dim or value_dim]``;
    mask: what the model made of the mask it asked for; options: all else.
    """

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    options: Mapping[str, Any]


# Returns ``[tokens, heads, value_dim]``.
Handler = Callable[[AttentionCall], torch.Tensor]


class Bridge:
    """Hands the attention calls of one model to whoever handles them at the time.

    It travels on the model's modules, so that models in one process share nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        register()
        self._handler: Handler | None = None
        self._configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None))}
        for module in model.modules():
            setattr(module, _BRIDGE, self)

    @contextmanager
    def handled_by(self, handler: Handler) -> Iterator[None]:
        """Inside, attention calls go to ``handler``."""
        self._handler = handler
        try:
            yield
        finally:
            self._handler = None

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Inside, layers call the attention function of this name."""
        before = [(config, config._attn_implementation) for config in self._configs.values()]
        for config, _ in before:
            config._attn_implementation = name
        try:
            yield
        finally:
            for config, earlier in before:
                config._attn_implementation = earlier

    def attend(self, call: AttentionCall) -> torch.Tensor:
        assert self._handler is not None, "attention outside of a handled forward"
        return self._handler(call)


def register() -> None:
    """Enters our names into transformers' tables; a model can be built with them from then on."""
    from transformers import AttentionInterface, AttentionMaskInterface  # costs import time

    AttentionInterface.register(PAGED, _attention)
    AttentionInterface.register(PROBED, _attention)
    AttentionMaskInterface.register(PROBED, _wanted_mask)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    bridge: Bridge = getattr(module, _BRIDGE)
    attended = bridge.attend(AttentionCall(module, query, key, value, attention_mask, options))
    return attended[None], None


def _wanted_mask(*, mask_function: Any, local_size: int | None = None, **_: Any) -> WantedMask:
    return WantedMask(mask_function, local_size)
