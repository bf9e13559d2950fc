# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Experts on a CPU whose result for a token depends on that token alone, down to the last bit.

Which tokens share an expert decides which rows are multiplied in one go, and nothing else: a row of
a product is its own (:class:`RowKernels`), and a token adds what its experts gave in the order in
which it ranks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from slipstream.layers.rows import RowKernels, address_of, dtype_of

if TYPE_CHECKING:
    from slipstream.layers.router import RouterSpec


def route(
    kernels: RowKernels,
    logits: torch.Tensor,
    spec: RouterSpec,
    correction: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``router.choose``, best expert first, and of equals the one with the lower number.

    logits: float32 ``[tokens, num_experts]``. Returns experts, int64, and weights, float32: each
    ``[tokens, top_k]``.
    """
    tokens, count = logits.shape
    logits = logits.contiguous()
    assert logits.dtype == torch.float32
    assert count == spec.num_experts
    assert spec.top_k <= count
    limited = spec.kept_groups < spec.num_groups
    rank_by_two = spec.group_rank == "top2"
    assert not limited or (
        count % spec.num_groups == 0 and count // spec.num_groups > int(rank_by_two)
    )
    experts = torch.empty(tokens, spec.top_k, dtype=torch.int64)
    weights = torch.empty(tokens, spec.top_k)
    kernels.handle.route(
        logits.data_ptr(),
        address_of(correction, (count,), torch.float32),
        experts.data_ptr(),
        weights.data_ptr(),
        tokens,
        count,
        spec.top_k,
        spec.num_groups,
        spec.kept_groups,
        spec.score == "sigmoid",
        spec.score_chosen,
        rank_by_two,
        spec.renormalise,
        spec.scale,
    )
    return experts, weights


def multiply(
    kernels: RowKernels,
    rows: torch.Tensor,
    matrices: torch.Tensor,
    biases: torch.Tensor | None,
    segments: list[tuple[int, int, int]],
) -> torch.Tensor:
    """Each segment of rows times its expert's matrix, plus its bias.

    rows: ``[pairs, in]``; matrices: ``[num_experts, out, in]``, each contiguous; biases:
    ``[num_experts, out]``; segments: expert, first row and end, one after the other. Returns
    ``[pairs, out]``.
    """
    count, size = rows.shape
    experts, columns, _ = matrices.shape
    rows = rows.contiguous()
    assert matrices.shape[2] == size
    assert matrices[0].is_contiguous()
    assert matrices.dtype == rows.dtype
    assert [0, *(end for _, _, end in segments)] == [*(first for _, first, _ in segments), count]
    out = rows.new_empty(count, columns)
    if segments:
        bounds = torch.tensor(segments)
        kernels.handle.expert_linear(
            rows.data_ptr(),
            matrices.data_ptr(),
            matrices.stride(0),
            address_of(biases, (experts, columns), rows.dtype),
            out.data_ptr(),
            bounds.data_ptr(),
            len(segments),
            size,
            columns,
            dtype_of(rows),
        )
    return out


def combine(
    kernels: RowKernels, rows: torch.Tensor, places: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """A token's rows, times its weights if there are any, added in the order that it ranks them.

    rows: ``[pairs, size]``; places: int64 ``[tokens, top_k]``, which of them are a token's;
    weights: float32 ``[tokens, top_k]``. Returns ``[tokens, size]``.
    """
    tokens, top_k = places.shape
    pairs, size = rows.shape
    assert tokens * top_k == pairs
    assert rows.is_contiguous()
    out = rows.new_empty(tokens, size)
    kernels.handle.combine(
        rows.data_ptr(),
        address_of(places, (tokens, top_k), torch.int64),
        address_of(weights, (tokens, top_k), torch.float32),
        out.data_ptr(),
        tokens,
        size,
        top_k,
        dtype_of(rows),
    )
    return out
