# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The fused kernels of a layer against the operations that they replace."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slipstream.layers.mlp import ACTIVATIONS
from slipstream.layers.norm import Norm, NormSpec
from slipstream.layers.rotary import RopeSpec, RotaryEmbedding, rotate_

pytest.importorskip("triton")

from slipstream.kernels.activation import gated_activation
from slipstream.kernels.norm import add_rms_norm
from slipstream.kernels.qkv import prepare_qkv
from slipstream.kernels.rope import rope_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, least: float = 1e-6) -> None:
    """Equal but for the last place, which the order of a sum or a library's function decides."""
    assert actual.dtype == expected.dtype
    relative = 2 * torch.finfo(actual.dtype).eps if actual.dtype != torch.float32 else 2e-6
    torch.testing.assert_close(actual, expected, rtol=relative, atol=least)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [100, 4096])
@pytest.mark.parametrize("weight", ["none", "own", "float32"])
@pytest.mark.parametrize("scale", [None, 1.0, 0.22])
def test_add_rms_norm(dtype: torch.dtype, hidden: int, weight: str, scale: float | None) -> None:
    x, delta = random(3, hidden, dtype=dtype), random(3, hidden, dtype=dtype, seed=1)
    norm = Norm(NormSpec(1e-5, weight=weight != "none", float32_weight=weight == "float32"),
                (hidden,), dtype).to(DEVICE).requires_grad_(False)  # fmt: skip
    if norm.weight is not None:
        norm.weight.copy_(random(hidden, seed=2))
    # In float32, as add_ computes on a GPU whatever the dtype.
    total = x.clone() if scale is None else (x.float() + scale * delta.float()).to(dtype)
    out = add_rms_norm(x, None if scale is None else delta, norm.weight, 1e-5, scale=scale or 1.0)
    assert_near(x, total)
    assert_near(out, norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
@pytest.mark.parametrize("inner", [96, 1500])
def test_gated_activation(dtype: torch.dtype, activation: str, inner: int) -> None:
    gate_up = random(3, 2 * inner, dtype=dtype) * 3
    gate_up[0, 0] = float("nan")
    gate, up = gate_up.chunk(2, -1)
    active = ACTIVATIONS[activation](gate.float()).to(dtype)  # type: ignore[index]
    if activation == "relu2":
        active = F.relu(gate).square()
    out, expected = gated_activation(gate_up, activation), active * up
    assert out[0, 0].isnan()
    # 1 + erf cancels where gelu is nearly 0.
    assert_near(out[1:], expected[1:], 1e-5 if activation == "gelu" else 1e-6)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="'tanh' is none of silu"):
        gated_activation(torch.zeros(1, 2), "tanh")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", ["halves", "interleaved"])
@pytest.mark.parametrize("dim", [8, 96])
def test_rope_tables(dtype: torch.dtype, style: str, dim: int) -> None:
    embedding = RotaryEmbedding(RopeSpec(1e4, dim, style), dtype)  # type: ignore[arg-type]
    embedding._factor = 1.25
    positions = torch.tensor([0, 1, 77, 4095, 131071, 999_999])
    tables = rope_tables(
        positions.to(DEVICE), embedding.inverse_frequencies.to(DEVICE), 1.25, style, dtype
    )
    for ours, expected in zip(tables, embedding.tables(positions), strict=True):
        assert_near(ours.cpu(), expected[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", ["halves", "interleaved"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "dim"), [(8, 2, 64, 64), (6, 6, 80, 32), (5, 1, 32, None)]
)
@pytest.mark.parametrize("norm", ["none", "before", "after", "float32"])
def test_prepare_qkv(
    dtype: torch.dtype,
    style: str,
    heads: int,
    kv_heads: int,
    size: int,
    dim: int | None,
    norm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, tokens_per_block = 4, 8
    qkv = random(tokens, heads + 2 * kv_heads, size, dtype=dtype)
    pool = random(5, 2, kv_heads, tokens_per_block, size, dtype=dtype, seed=1)
    slots = torch.tensor([17, -1, 39, 0], device=DEVICE)
    cos = sin = None
    if dim is not None:
        embedding = RotaryEmbedding(RopeSpec(1e4, dim, style), dtype)  # type: ignore[arg-type]
        cos, sin = embedding.tables(torch.tensor([3, 0, 100, 5], device=DEVICE))
    weight_dtype = torch.float32 if norm == "float32" else dtype
    weights = [random(size, dtype=weight_dtype, seed=seed) for seed in (2, 3)]
    factor = random(tokens, dtype=dtype, seed=4)

    expected, parts = qkv.clone(), (slice(0, heads), slice(heads, heads + kv_heads))

    def normalise() -> None:
        for part, weight in zip(parts, weights, strict=True):
            normed = F.rms_norm(expected[:, part].float(), (size,), weight.float(), 1e-6)
            expected[:, part] = normed.to(dtype)

    if norm in ("before", "float32"):
        normalise()
    if cos is not None and sin is not None:
        rotate_(expected[:, : heads + kv_heads], (cos, sin), style)  # type: ignore[arg-type]
    if norm == "after":
        normalise()
    expected[:, :heads] *= factor[:, None, None]
    expected_pool = pool.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, tokens_per_block)
            keys_values = expected[token, heads:].view(2, kv_heads, size)
            expected_pool[block, :, :, offset] = keys_values

    keys = qkv[:, heads:].clone()
    q_norm, k_norm = weights if norm != "none" else (None, None)
    given = qkv.clone()
    prepare_qkv(
        qkv, pool, slots, kv_heads=kv_heads, cos=cos, sin=sin, style=style,
        q_norm=q_norm, k_norm=k_norm, eps=1e-6, norm_after_rope=norm == "after", q_factor=factor,
    )  # fmt: skip
    assert torch.equal(qkv[:, heads:], keys)
    written = pool.clone()
    pool.zero_()
    monkeypatch.setattr("slipstream.kernels.qkv._MANY_TOKENS", 1)  # by larger programs
    elsewhere, untouched = torch.empty_like(expected[:, :heads]).contiguous(), given.clone()
    prepare_qkv(
        given, pool, slots, kv_heads=kv_heads, cos=cos, sin=sin, style=style, q_out=elsewhere,
        q_norm=q_norm, k_norm=k_norm, eps=1e-6, norm_after_rope=norm == "after", q_factor=factor,
    )  # fmt: skip
    assert torch.equal(given, untouched)
    # A GPU adds up a norm's squares in an order of its own in larger programs.
    bound = 4 * torch.finfo(dtype).eps if DEVICE == "cuda" else 0.0
    torch.testing.assert_close(elsewhere, qkv[:, :heads], rtol=bound, atol=8 * bound)
    for slot in slots.tolist():
        block, offset = divmod(max(slot, 0), tokens_per_block)
        torch.testing.assert_close(
            pool[block, :, :, offset], written[block, :, :, offset], rtol=bound, atol=8 * bound
        )
    pool = written
    # A GPU's compiler joins a product and a sum, and rounds once where torch rounds twice.
    if norm == "none" and dtype != torch.float32 and DEVICE == "cpu":
        assert torch.equal(qkv[:, :heads], expected[:, :heads])
        assert torch.equal(pool, expected_pool)
        return
    # A norm that differs in its last place can be amplified where a rotation cancels.
    bound = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(qkv[:, :heads], expected[:, :heads], rtol=bound, atol=8 * bound)
    torch.testing.assert_close(pool, expected_pool, rtol=bound, atol=8 * bound)
