# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How rotary frequencies are stretched for longer contexts than a model was first trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by ``factor`` (position interpolation, Chen et al. 2023)."""

    factor: float
    attention_factor: float = 1.0

    def scale(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        return frequencies / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Divides the frequencies whose wavelength exceeds ``original_positions / low_freq_factor``,
    blends up to ``original_positions / high_freq_factor`` (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int
    attention_factor: float = 1.0

    def scale(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        wavelength = 2 * math.pi / frequencies
        share = self.original_positions / wavelength - self.low_freq_factor
        smooth = (share / (self.high_freq_factor - self.low_freq_factor)).clamp(0.0, 1.0)
        return (1 - smooth) * frequencies / self.factor + smooth * frequencies


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Divides the slow frequencies, keeps the fast ones, and blends over a range given in rotations
    within ``original_positions`` (Peng et al., YaRN). ``attention_factor`` multiplies cos and sin;
    ``truncate`` rounds the range outwards to whole frequencies."""

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        count = frequencies.numel()
        low, high = (
            self._index(beta, 2 * count, theta) for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0.0), min(high, 2 * count - 1.0)
        if low == high:
            high += 0.001
        index = torch.arange(count, dtype=torch.float32, device=frequencies.device)
        slow = ((index - low) / (high - low)).clamp(0.0, 1.0)
        return frequencies / self.factor * slow + frequencies * (1 - slow)

    def _index(self, rotations: float, dim: int, theta: float) -> float:
        """Which frequency makes so many rotations within the original positions."""
        turns = self.original_positions / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))


@dataclass(frozen=True, slots=True)
class ListedScaling:
    """Every frequency divided by its own factor (LongRoPE, Ding et al. 2024)."""

    factors: tuple[float, ...]
    attention_factor: float

    def scale(self, frequencies: torch.Tensor, theta: float) -> torch.Tensor:
        return frequencies / torch.tensor(self.factors, device=frequencies.device)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | ListedScaling
