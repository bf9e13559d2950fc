# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Norms between two products that stream are part of these; all others stay where they were."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton.experimental.gluon")

from slipstream.attention.interface import ScoreSpec
from slipstream.kernels import stream_linear as kernels
from slipstream.kernels.skinny_linear import SkinnyConfig
from slipstream.kernels.stream_linear import Divisor, Join, padded_rows, streamed_candidates
from slipstream.layers.experts import ExpertsSpec
from slipstream.layers.linear import FewRows, GatedLinear, Linear, Residual, Undivided
from slipstream.layers.mlp import MlpSpec
from slipstream.layers.moe import MoeSpec
from slipstream.layers.norm import Norm, NormSpec
from slipstream.layers.router import RouterSpec
from slipstream.models.decoder import Decoder
from slipstream.models.spec import ArchSpec, AttentionSpec, BlockSpec, LayerSpec

STREAM = SkinnyConfig(64, 256, 1, 4, 4, "stream")
TILES = SkinnyConfig(64, 128, 2, 4, 4)
LAYERS = 3

DENSE = LayerSpec(AttentionSpec(ScoreSpec(1.0), rope=None), MlpSpec(96))
LLAMA = ArchSpec(
    architecture="Test",
    vocab_size=50,
    hidden_size=72,  # two tiles, the second of them not full
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=100,
    layers=(DENSE,) * LAYERS,
    norm=NormSpec(1e-5),
)


class QueriesAlone:
    """Stands for attention: a token's result are its queries."""

    def run(self, layer: int, qkv: torch.Tensor, sinks: Any, preparation: Any) -> torch.Tensor:
        return qkv[:, : preparation.heads].flatten(1).contiguous()


class Streamed:
    """Stands for ``stream_linear`` and counts what it was asked for."""

    def __init__(self) -> None:
        self.joined = self.divided = 0

    def __call__(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        arrivals: torch.Tensor,
        config: SkinnyConfig,
        out: torch.Tensor | None = None,
        *,
        activation: str | None = None,
        join: Join | None = None,
        divisor: Divisor | None = None,
    ) -> torch.Tensor:
        assert config == STREAM
        rows, size = x.shape
        sums = x.float() @ w.float().T
        if divisor is not None:
            self.divided += 1
            assert divisor.squares.shape == (-(-size // 64), padded_rows(rows))
            squares = divisor.squares.sum(0)[:rows, None]
            sums *= torch.rsqrt(squares / size + divisor.eps)
        product = sums.to(x.dtype)
        if activation is not None:
            gate, up = product.chunk(2, 1)
            return F.silu(gate) * up
        if join is not None:
            self.joined += 1
            join.hidden.copy_(join.hidden.float() + product.float() * join.scale)
            new = join.hidden.float()
            for tile, columns in enumerate(new.split(64, 1)):
                join.squares[tile, :rows] = columns.square().sum(1)
            product = (new * join.weight.float()).to(x.dtype)
        return product


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> Streamed:
    fake = Streamed()
    monkeypatch.setattr(kernels, "stream_linear", fake)
    return fake


def make_decoder(spec: ArchSpec, dtype: torch.dtype, device: str = "cpu") -> Decoder:
    with torch.device(device):
        decoder = Decoder(spec, dtype).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in decoder.named_parameters():
        std = 0.5 if "norm" in name or parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.normal_(generator=generator).mul_(std)
    return decoder


def let_stream(decoder: Decoder, configs: list[tuple[int, Any]]) -> None:
    """What ``choose_kernels`` does."""
    arrivals = torch.zeros(1000, dtype=torch.int32)
    for module in decoder.modules():
        if isinstance(module, Linear) and module.bias is None:
            module.few_rows = FewRows(configs, arrivals)


def run(decoder: Decoder, tokens: int, kept: list[int] | None = None) -> torch.Tensor:
    ids = torch.arange(tokens, device=decoder.device) % decoder.spec.vocab_size
    rows = None if kept is None else torch.tensor(kept, device=decoder.device)
    with torch.inference_mode():
        return decoder(ids, torch.zeros_like(ids), QueriesAlone(), rows).float()


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "spec",
    [
        LLAMA,
        replace(LLAMA, block=BlockSpec(residual_scale=0.22)),
        replace(LLAMA, norm=NormSpec(1e-2, float32_weight=True)),
    ],
    ids=["plain", "scaled", "float32_weight"],
)
def test_a_decoder_whose_products_join_the_residual(
    spec: ArchSpec, streamed: Streamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(spec, torch.bfloat16)
    exact = run(copy.deepcopy(decoder).float(), 16)
    plain = error(run(decoder, 16), exact)
    let_stream(decoder, [(16, STREAM)])
    # The others, before the first norm and after the last one.
    monkeypatch.setattr(Linear, "_few_rows_product", lambda *arguments, **options: None)
    assert error(run(decoder, 16), exact) < 1.2 * plain < 0.02
    assert streamed.joined == streamed.divided == 2 * LAYERS - 1, "nothing follows the last"


def test_the_last_layer_joins_the_rows_that_are_kept(streamed: Streamed) -> None:
    decoder = make_decoder(LLAMA, torch.bfloat16)
    kept = [3, 17, 39]
    exact = run(copy.deepcopy(decoder).float(), 40, kept)
    let_stream(decoder, [(16, STREAM)])
    decoder.layers[-1].mlp.down.few_rows = None
    assert error(run(decoder, 40, kept), exact) < 0.02
    assert streamed.joined == streamed.divided == 1, "40 rows are too many, 3 are not"


MOE = replace(DENSE, mlp=MoeSpec(RouterSpec(8, 2), ExpertsSpec(32)))


@pytest.mark.parametrize(
    ("spec", "joined"),
    [
        (replace(LLAMA, layers=(DENSE, MOE, DENSE)), 3),  # not before the mixture, nor its result
        (replace(LLAMA, layers=(replace(DENSE, mlp=MlpSpec(96, gated=False)),)), 0),
        (replace(LLAMA, block=BlockSpec(post_norm=True)), 0),
        (replace(LLAMA, block=BlockSpec(pre_norm=False, post_norm=True)), 0),
        (replace(LLAMA, block=BlockSpec(parallel="one_norm")), 0),
        (replace(LLAMA, block=BlockSpec(parallel="two_norms")), 0),
        (replace(LLAMA, norm=NormSpec(1e-5, kind="layer")), 0),
        (replace(LLAMA, norm=NormSpec(1e-5, bias=True)), 0),
        (replace(LLAMA, norm=NormSpec(1e-5, weight=False)), 0),
        (LLAMA.with_attention(output_bias=True), LAYERS - 1),
        (LLAMA.with_attention(qkv_bias=True), LAYERS),
        (LLAMA, 2 * LAYERS - 1),
    ],
)
def test_which_products_join(spec: ArchSpec, joined: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder(spec, torch.bfloat16)
    expected = run(decoder, 5)
    let_stream(decoder, [(16, STREAM)])
    found = []

    def asked(self: Linear, x: torch.Tensor, residual: Residual) -> torch.Tensor:
        found.append(self.streams(x.shape[0]))
        return self(x)

    monkeypatch.setattr(Linear, "joined", asked)
    monkeypatch.setattr(Linear, "_few_rows_product", lambda *arguments, **options: None)
    assert torch.equal(run(decoder, 5), expected), "as without, where it is left to the norm"
    assert found.count(True) == joined


@pytest.mark.parametrize(
    ("dtype", "configs", "able"),
    [
        (torch.bfloat16, [(1, None), (16, STREAM), (32, TILES)], [2, 16]),
        (torch.bfloat16, [(64, STREAM), (128, STREAM)], [1, 2, 16, 17, 33, 64]),
        (torch.float16, [(1, None), (16, STREAM), (32, TILES)], []),
        (torch.bfloat16, [], []),
    ],
)
def test_which_rows_stream(dtype: torch.dtype, configs: list, able: list[int]) -> None:
    linear = Linear(64, 64, bias=False, dtype=dtype)
    assert not linear.streams(2), "nothing was measured"
    linear.few_rows = FewRows(configs, torch.zeros(1))
    assert [rows for rows in (1, 2, 16, 17, 33, 64, 65, 128) if linear.streams(rows)] == able
    linear.rows = SimpleNamespace()  # type: ignore[assignment]
    assert not linear.streams(2)


def test_a_product_that_does_not_stream_is_left_to_be_joined(streamed: Streamed) -> None:
    linear = Linear(64, 72, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    norm = Norm(NormSpec(1e-5), (72,), torch.bfloat16).requires_grad_(False)
    x = torch.randn(20, 64).bfloat16()
    hidden = torch.ones(20, 72, dtype=torch.bfloat16)
    linear.few_rows = FewRows([(16, STREAM)], torch.zeros(1))
    product = linear.joined(x, Residual(hidden, 1.0, norm))
    assert isinstance(product, torch.Tensor)
    assert torch.equal(product, linear(x))
    assert hidden.eq(1).all()
    assert isinstance(linear.joined(x[:16], Residual(hidden[:16], 1.0, norm)), Undivided)
    assert hidden[16:].eq(1).all()
    assert not hidden[:16].eq(1).all()
    assert streamed.joined == 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)
@pytest.mark.parametrize("rows", [2, 16, 33, 64])
def test_a_decoder_on_a_gpu(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = replace(DENSE, mlp=MlpSpec(4096))
    spec = replace(
        LLAMA, hidden_size=2048, num_heads=16, num_kv_heads=4, head_dim=128, layers=(layer,) * 3
    )
    decoder = make_decoder(spec, torch.bfloat16, "cuda")
    tokens = 70  # of the last layer as many as ``rows`` are kept, and then of all
    kept = list(range(tokens - rows, tokens))
    exact = copy.deepcopy(decoder).float()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    arrivals = torch.zeros(8192, dtype=torch.int32, device="cuda")

    def choose(turn: int) -> int:
        """The turn-th candidate of each; returns how many there are at most."""
        most = 0
        for module in decoder.layers.modules():
            if isinstance(module, Linear):
                activation = module.activation if isinstance(module, GatedLinear) else None
                found = streamed_candidates(rows, *module.weight.shape, activation, processors)
                module.few_rows = FewRows([(rows, found[turn % len(found)])], arrivals)
                most = max(most, len(found))
        return most

    turns = choose(0)
    for turn in range(turns):
        choose(turn)
        for given, selected in ((rows, None), (tokens, kept)):
            expected = run(exact, given, selected)
            joined = [run(decoder, given, selected) for _ in range(5)]
            with monkeypatch.context() as apart:
                apart.setattr(Linear, "streams", lambda self, rows: False)
                plain = error(run(decoder, given, selected), expected)
            assert error(joined[0], expected) < 1.2 * plain < 0.05
            assert all(torch.equal(again, joined[0]) for again in joined)
    assert not arrivals.any()
