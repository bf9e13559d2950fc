# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures, on the GPU at hand, which kernel multiplies a few rows fastest."""

from __future__ import annotations

import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
import triton
from torch import nn
from torch.nn import functional as F

from slipstream.kernels.activation import gated_activation
from slipstream.kernels.skinny_linear import SkinnyConfig, candidates, skinny_linear
from slipstream.kernels.timing import milliseconds
from slipstream.layers.linear import FewRows, GatedLinear, Linear

_ROWS = (1, 16, 32, 64, 128)  # that are measured, each for all down to the one before
_GENERATION = 4  # of the kernels and of how they are measured
_MARGIN = 0.98  # a kernel has to beat torch's by more than noise
_MOST_ERROR = 0.02  # of a result, beside torch's: bfloat16 is told apart from nonsense


def choose_kernels(model: nn.Module) -> None:
    """Gives every bfloat16 or float16 Linear without a bias its fastest kernels.

    What was measured is remembered in the user's cache directory, by GPU and versions.
    """
    alike: dict[_Kind, list[Linear]] = {}
    for module in model.modules():
        if isinstance(module, Linear) and module.bias is None and module.weight.itemsize == 2:
            n, k = module.weight.shape
            activation = module.activation if isinstance(module, GatedLinear) else None
            if k % 8 == 0 and module.weight.data_ptr() % 16 == 0:  # as TMA wants them
                alike.setdefault(_Kind(n, k, activation), []).append(module)
    if not alike:
        return
    device = next(iter(alike.values()))[0].weight.device
    arrivals = torch.zeros(max(kind.n for kind in alike), dtype=torch.int32, device=device)
    known = _Remembered(device)
    for kind, modules in alike.items():
        weights = [module.weight for module in modules]
        configs = []
        for rows in _ROWS:
            key = f"{kind} {rows} {weights[0].dtype}"
            offered = candidates(rows, weights[0], kind.activation)
            if not known.has(key, offered):
                known.set(key, _fastest(kind, rows, offered, weights, arrivals))
            configs.append((rows, known.get(key, offered)))
        for module in modules:
            module.few_rows = FewRows(configs, arrivals)
    known.save()


@dataclass(frozen=True, slots=True)
class _Kind:
    """Matrices for which the same kernels are fastest."""

    n: int
    k: int
    activation: str | None

    def __str__(self) -> str:
        return f"{self.n}x{self.k}" + (f" {self.activation}" if self.activation else "")

    def by_torch(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        product = F.linear(x, w)
        return gated_activation(product, self.activation) if self.activation else product


def _fastest(
    kind: _Kind,
    rows: int,
    offered: list[SkinnyConfig],
    weights: list[torch.Tensor],
    arrivals: torch.Tensor,
) -> SkinnyConfig | None:
    if not offered:
        return None
    best, least = None, _MARGIN * milliseconds(kind.by_torch, rows, weights)
    x = torch.randn(rows, kind.k, device=weights[0].device).to(weights[0].dtype)
    expected = kind.by_torch(x, weights[0]).float()
    for config in offered:

        def product(
            x: torch.Tensor, w: torch.Tensor, config: SkinnyConfig = config
        ) -> torch.Tensor:
            return skinny_linear(x, w, arrivals, config, activation=kind.activation)

        # What is written in an experiment of Triton's is not for all its versions.
        try:
            error = (product(x, weights[0]).float() - expected).norm() / expected.norm()
        except triton.CompilationError:
            continue
        if not error < _MOST_ERROR:
            continue
        time = milliseconds(product, rows, weights)
        if time < least:
            best, least = config, time
    return best


class _Remembered:
    """Earlier results, in a file that may be missing or of no use."""

    def __init__(self, device: torch.device) -> None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._file = root / "slipstream" / "linear_kernels.json"
        versions = f"torch {torch.__version__} triton {triton.__version__} kernels {_GENERATION}"
        self._section = f"{torch.cuda.get_device_name(device)} {versions}"
        self._new: dict[str, list | None] = {}
        self._known = self._read().get(self._section, {})

    def has(self, key: str, offered: list[SkinnyConfig]) -> bool:
        """Whether the fastest is known, and one of those offered now, or torch's product."""
        return key in self._known and self._known[key] in (None, *map(_fields, offered))

    def get(self, key: str, offered: list[SkinnyConfig]) -> SkinnyConfig | None:
        fields = self._known[key]
        return next((config for config in offered if _fields(config) == fields), None)

    def set(self, key: str, config: SkinnyConfig | None) -> None:
        self._known[key] = self._new[key] = None if config is None else _fields(config)

    def save(self) -> None:
        if not self._new:
            return
        content = self._read()
        content[self._section] = {**content.get(self._section, {}), **self._new}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(content, indent=1))
            partial.replace(self._file)
        except OSError:
            return  # then the next start measures again

    def _read(self) -> dict[str, dict[str, list | None]]:
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict):
            return {}
        return {name: section for name, section in content.items() if isinstance(section, dict)}


def _fields(config: SkinnyConfig) -> list:
    return list(astuple(config))
