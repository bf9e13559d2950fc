# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model in half precision that computes in float32 for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

_PIECE = 1 << 20  # elements

_Tensors = dict[str, Any]  # of a module, by name


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, every module computes in float32.

    At no time is there more in float32 than the weights of the modules that are running, such as
    one layer's experts; of plain linear maps it is a piece, and of embeddings the rows that are
    looked up, since a vocabulary's matrix may be most of a model.
    """
    # One buffer for all: of pieces allocated in turn the allocator would keep many.
    wide = torch.empty(_PIECE, device=next(model.parameters()).device)
    hooks, linear = [], []
    for module in model.modules():
        if isinstance(module, nn.Embedding) and _is_narrow(module.weight):
            hooks.append(module.register_forward_hook(lambda _, __, rows: rows.float()))
        elif _is_plain_linear(module) and _is_narrow(module.weight):
            module.forward = partial(_linear, module, wide)  # type: ignore[method-assign]
            linear.append(module)
        elif any(map(_is_narrow, (*module._parameters.values(), *module._buffers.values()))):
            narrow: list[tuple[_Tensors, _Tensors]] = []
            hooks.append(module.register_forward_pre_hook(_Widen(narrow)))
            hooks.append(module.register_forward_hook(_Restore(narrow), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in linear:
            del module.forward


def _linear(module: nn.Linear, wide: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    rows = wide.numel() // module.in_features
    out = x.new_empty(*x.shape[:-1], module.out_features)
    for piece, into in zip(module.weight.split(rows), out.split(rows, -1), strict=True):
        into.copy_(F.linear(x, wide[: piece.numel()].view(piece.shape).copy_(piece)))
    return out if module.bias is None else out + module.bias.float()


class _Widen:
    def __init__(self, narrow: list[tuple[_Tensors, _Tensors]]) -> None:
        self._narrow = narrow

    def __call__(self, module: nn.Module, _: Any) -> None:
        for owner in (module._parameters, module._buffers):
            held: _Tensors = dict(owner)
            self._narrow.append((owner, held))
            for name, tensor in held.items():
                if tensor is not None and _is_narrow(tensor):
                    wide = tensor.detach().float()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    owner[name] = nn.Parameter(wide, requires_grad=False) if is_parameter else wide


class _Restore:
    def __init__(self, narrow: list[tuple[_Tensors, _Tensors]]) -> None:
        self._narrow = narrow

    def __call__(self, module: nn.Module, *_: Any) -> None:
        while self._narrow:
            owner, held = self._narrow.pop()
            owner.update(held)


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module).forward is nn.Linear.forward


def _is_narrow(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16)
