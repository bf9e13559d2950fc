# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model in half precision that computes in float32 for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_Tensors = dict[str, Any]  # of a module, by name


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, every module has its weights in float32 while it runs, and only then.

    At no time is there more in float32 than the weights of the modules that are running, which
    is one layer's matrix or one layer's experts.
    """
    hooks = []
    for module in model.modules():
        if any(map(_is_narrow, (*module._parameters.values(), *module._buffers.values()))):
            narrow: list[tuple[_Tensors, _Tensors]] = []
            hooks.append(module.register_forward_pre_hook(_Widen(narrow)))
            hooks.append(module.register_forward_hook(_Restore(narrow), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def _is_narrow(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16)
