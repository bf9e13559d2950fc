# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The mixture-of-experts block: a router, its experts, and experts that every token shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from slipstream.layers.device import has_kernels
from slipstream.layers.experts import Dispatch, Experts, ExpertsSpec
from slipstream.layers.linear import PlainLinear
from slipstream.layers.mlp import GatedMlp, MlpSpec
from slipstream.layers.router import Router, RouterSpec


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts. ``shared`` is the block that every token takes, all shared experts as
    one; with ``shared_gate`` a token weighs it by a sigmoid of its own."""

    router: RouterSpec
    experts: ExpertsSpec
    shared: MlpSpec | None = None
    shared_gate: bool = False


class TokenGate(PlainLinear):
    """A token's own weight, ``sigmoid(weight . x)``."""

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[tokens, hidden]``. Returns ``[tokens, 1]``."""
        logit = super().forward(x)
        return logit.sigmoid_() if self.rows is None else self.rows.activate_(logit, "sigmoid")


class MoeBlock(nn.Module):
    """``experts(x) + shared(x)``; if gated, the shared part times ``sigmoid(shared_gate(x))``."""

    def __init__(self, hidden_size: int, spec: MoeSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(spec.router, hidden_size, dtype)
        self.experts = Experts(spec.experts, hidden_size, spec.router.num_experts, dtype)
        self.shared = GatedMlp(hidden_size, spec.shared, dtype) if spec.shared else None
        self.shared_gate = TokenGate(hidden_size, dtype) if spec.shared_gate else None
        self._load: torch.Tensor | None = None

    def count_into(self, load: torch.Tensor) -> None:
        """From now on adds each step's tokens per expert to ``load``, int64 ``[num_experts]``."""
        self._load = load

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: ``[tokens, hidden]``."""
        chosen, weights = self.router(x)
        out: torch.Tensor
        if has_kernels(x.device):
            out = self.experts.by_kernels(x, chosen, weights, self._load)
        else:
            dispatch = Dispatch.of(chosen, self.router.spec.num_experts)
            out = self.experts(x, dispatch, weights)
            if self._load is not None:
                self._load += dispatch.counts
        if self.shared is None:
            return out
        shared = self.shared(x)
        if self.shared_gate is not None:
            shared *= self.shared_gate(x)
        return out.add_(shared)


class LoadReading:
    """A copy of the counts on its way to the CPU, behind the work that the device has to do."""

    def __init__(self, counts: torch.Tensor) -> None:
        on_gpu = counts.is_cuda
        self.counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=on_gpu)
        self.counts.copy_(counts, non_blocking=on_gpu)
        self._copied = torch.cuda.current_stream(counts.device).record_event() if on_gpu else None

    def done(self) -> bool:
        """Whether ``counts`` can be read; does not wait."""
        return self._copied is None or self._copied.query()


class ExpertLoad:
    """Tokens that each expert has computed since the start, by layer.

    Counts stay on the device: a step adds to them without waiting, a reading copies them.
    """

    def __init__(self, blocks: Mapping[int, MoeBlock], device: torch.device) -> None:
        """blocks: the model's MoE blocks by layer number, all with as many experts."""
        self.layers = tuple(blocks)
        self.num_experts = max((b.router.spec.num_experts for b in blocks.values()), default=0)
        shape = (len(blocks), self.num_experts)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)
        for row, block in zip(self._counts, blocks.values(), strict=True):
            block.count_into(row)

    def counts(self) -> torch.Tensor:
        """int64 ``[MoE layers, experts]`` on the CPU, rows in the order of ``layers``."""
        return self._counts.cpu().clone()

    def begin_reading(self) -> LoadReading:
        """``counts()`` as of the steps so far, without waiting for them."""
        return LoadReading(self._counts)

    def imbalance(self) -> list[float]:
        """Per layer, the busiest expert's load over the mean load: 1 is even, the number of experts
        is one expert doing everything. 1 for a layer that has computed nothing."""
        counts = self.counts().double()
        mean = counts.mean(-1)
        return torch.where(mean > 0, counts.amax(-1) / mean, 1.0).tolist()
