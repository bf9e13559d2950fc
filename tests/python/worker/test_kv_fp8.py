# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model whose KV cache is FP8: its arithmetic, its scales, its memory and its refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from worker_checkpoints import VOCAB, Reference
from worker_testing import DEVICE, Driver, config, logits_of

from slipstream.attention.kv_scale import FP8, KvScale
from slipstream.models.config_reader import CheckpointError
from slipstream.models.selection import load_served
from slipstream.worker.config import ConfigError, WorkerConfig
from slipstream.worker.frames import SeqFlag
from slipstream.worker.kv_precision import choose_kv_precision, refuse_capability
from slipstream.worker.startup import hello, load_model, make_runner

PROMPT = np.random.default_rng(0).integers(3, VOCAB, 90).tolist()
LAYERS = 3
# Of float32, in the errors of whole rows; a GPU sums in another order than torch on a CPU.
ROUNDING = 5e-6 if DEVICE == "cpu" else 2e-5
# A key in the middle between two e4m3 values may fall to either side of it when sums come in
# another order. That is rare, and every later row moves by less than this.
FLIPPED = 5e-3
SCALES = tuple(KvScale(0.02 * (layer + 1), 0.3 / (layer + 1)) for layer in range(LAYERS))
# The spellings that checkpoints have, each of which is both scales of a layer.
SPELLINGS = {
    "llm-compressor": ("self_attn.k_scale", "self_attn.v_scale"),
    "modelopt": ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    "quark": ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    "vllm": ("self_attn.attn.k_scale", "self_attn.attn.v_scale"),
}
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def with_tensors(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A copy of a checkpoint with some more tensors."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})
    return target


def scale_tensors(spelling: str = "llm-compressor") -> dict[str, torch.Tensor]:
    key, value = SPELLINGS[spelling]
    named = {}
    for layer, scale in enumerate(SCALES):
        named[f"model.layers.{layer}.{key}"] = torch.tensor([scale.key])
        named[f"model.layers.{layer}.{value}"] = torch.tensor(scale.value)
    return named


@pytest.fixture
def scaled(checkpoint: Callable[[str], Reference], tmp_path: Path) -> Path:
    return with_tensors(checkpoint("gqa").path, tmp_path / "scaled", scale_tensors())


def logits(runner, prompt: list[int], chunk: int = 1 << 30) -> torch.Tensor:
    """Of every position: ``[tokens, vocab]``."""
    driver = Driver(runner)
    plan, rows = driver.new_plan(), []
    sequence = driver.start(plan, 0, prompt)
    while sequence.computed < len(prompt):
        count = min(chunk, len(prompt) - sequence.computed)
        driver.add(plan, sequence, count, flags=SeqFlag.CONTEXT_LOGITS)
        rows += logits_of(driver.runner.step(plan.build()), VOCAB)
        plan = driver.new_plan()
    return torch.from_numpy(np.concatenate(rows))


def runner_of(path: Path, **overrides: object):
    """A runner with the checkpoint's own scales, as a worker starts it."""
    return load_model(settings(path, **overrides), lambda done, what: None).runner


def settings(path: Path, **overrides: object) -> WorkerConfig:
    fixed = {"device": DEVICE, "token_table": False, "cuda_graphs": False}
    return config(path, **{**fixed, **overrides})


@contextmanager
def rounding(model: torch.nn.Module, scales: tuple[KvScale, ...]) -> Iterator[None]:
    """transformers' model with keys and values rounded as an FP8 cache rounds them."""

    def rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    def attention(module, query, key, value, mask, **options):
        scale = scales[module.layer_idx]
        key, value = rounded(key, scale.key), rounded(value, scale.value)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("rounding", attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = "rounding"
    try:
        yield
    finally:
        model.config._attn_implementation = before


def errors(ours: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Of each row of logits, relative to its length."""
    return (ours - reference).norm(dim=1) / reference.norm(dim=1)


def assert_rounding_alone(found: torch.Tensor) -> None:
    """Rows with few tokens before them have seen no flipped key."""
    assert found[:8].max() < ROUNDING
    assert found.max() < FLIPPED


@pytest.mark.parametrize("impl", ["native", "transformers"])
@pytest.mark.parametrize("own", [False, True], ids=["scales-of-1", "scales"])
def test_logits_are_those_of_rounded_keys_and_values(
    checkpoint: Callable[[str], Reference], scaled: Path, impl: str, own: bool
) -> None:
    reference = checkpoint("gqa")
    path = scaled if own else reference.path
    runner = runner_of(path, kv_cache_dtype="fp8", model_impl=impl)
    scales = SCALES if own else (KvScale(),) * LAYERS
    with rounding(reference.model, scales):
        expected = reference.logits(PROMPT)
    found = errors(logits(runner, PROMPT), expected)
    assert_rounding_alone(found)
    # What rounding costs on random weights: their attention is sharper than a trained model's.
    unrounded = errors(expected, reference.logits(PROMPT))
    assert 1e-3 < unrounded.median() < 0.1
    assert found.max() < unrounded.median()


def test_decoding_reads_what_prefill_stored(
    checkpoint: Callable[[str], Reference], scaled: Path
) -> None:
    """Every token is the best of the reference, or as good: on a GPU by graphs of single tokens."""
    runner = runner_of(scaled, kv_cache_dtype="fp8", cuda_graphs=True, max_num_seqs=4)
    tokens, _ = Driver(runner).generate(PROMPT, 40)
    reference = checkpoint("gqa")
    with rounding(reference.model, SCALES):
        rows = reference.logits([*PROMPT, *tokens[:-1]])[len(PROMPT) - 1 :]
    chosen = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert ((rows.amax(1) - chosen) < 1e-3 * rows.norm(dim=1)).all()
    assert len(set(tokens)) > 10


def test_chunks_do_not_change_what_is_seen(scaled: Path) -> None:
    whole = logits(runner_of(scaled, kv_cache_dtype="fp8"), PROMPT)
    for chunk in (1, 5, 32):
        found = errors(logits(runner_of(scaled, kv_cache_dtype="fp8"), PROMPT, chunk), whole)
        assert_rounding_alone(found)


def test_reused_and_partly_copied_blocks_hold_the_same(scaled: Path) -> None:
    """What a sequence finds in the cache gives what it would have computed."""
    driver = Driver(runner_of(scaled, kv_cache_dtype="fp8"))
    plan = driver.new_plan()
    first = driver.start(plan, 0, PROMPT)
    driver.add(plan, first, len(PROMPT), flags=SeqFlag.CONTEXT_LOGITS)
    expected = torch.from_numpy(logits_of(driver.runner.step(plan.build()), VOCAB)[0])

    # 42 tokens: ten blocks of four, and two tokens of the next by copy.
    plan = driver.new_plan()
    second = driver.reuse(1, PROMPT, first, 40)
    second.computed = 42
    copied = driver.free[0].pop()
    plan.copy(first.blocks[0][10], copied, 2)
    second.blocks[0].append(copied)
    plan.admit(1, history=PROMPT, prompt_len=len(PROMPT))
    driver.add(plan, second, len(PROMPT) - 42, flags=SeqFlag.CONTEXT_LOGITS)
    found = torch.from_numpy(logits_of(driver.runner.step(plan.build()), VOCAB)[0])
    assert errors(found, expected[42:]).max() < FLIPPED
    pool = driver.runner.caches[0].pool.view(torch.uint8)
    shared = pool[:, first.blocks[0][10], :, :, :2]
    assert torch.equal(pool[:, copied, :, :, :2], shared)
    assert shared.any()


def test_every_spelling_of_scales_is_read(
    checkpoint: Callable[[str], Reference], tmp_path: Path
) -> None:
    for name in SPELLINGS:
        path = with_tensors(checkpoint("gqa").path, tmp_path / name, scale_tensors(name))
        decoder = load_served(path, "auto", torch.device("cpu"))
        chosen = choose_kv_precision(config(path, kv_cache_dtype="fp8"), decoder, path)
        assert chosen.dtype == FP8
        for scale, expected in zip(chosen.scales or (), SCALES, strict=True):
            assert (scale.key, scale.value) == pytest.approx((expected.key, expected.value))
    both = {f"model.layers.{i}.self_attn.kv_scale": torch.tensor(0.5) for i in range(LAYERS)}
    path = with_tensors(checkpoint("gqa").path, tmp_path / "both", both)
    chosen = choose_kv_precision(config(path, kv_cache_dtype="fp8"), decoder, path)
    assert chosen.scales == (KvScale(0.5, 0.5),) * LAYERS


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.self_attn.k_scale": torch.tensor(-0.5)}, "0.self_attn.k_scale is -0.5, expected a"),
        ({"0.self_attn.k_scale": torch.tensor(torch.inf)}, "k_scale is inf, expected a positive"),
        ({"1.self_attn.v_scale": torch.ones(2)}, r"v_scale is \(2,\); supported: one number"),
        ({"3.self_attn.v_scale": torch.tensor(1.0)}, "3.self_attn.v_scale: the model has 3 lay"),
        ({"1.self_attn.v_scale": None}, "lacks v_scale of layer 1"),
        ({"0.self_attn.kv_scale": torch.tensor(9.0)}, "kv_scale, which is the same, 9.0"),
    ],
)
def test_scales_that_cannot_be_used_are_refused_by_name(
    scaled: Path, tmp_path: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    file = scaled / "model.safetensors"
    stored = load_file(file)
    for name, tensor in tensors.items():
        stored.pop(f"model.layers.{name}", None)
        if tensor is not None:
            stored[f"model.layers.{name}"] = tensor
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        runner_of(scaled, kv_cache_dtype="fp8")


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_auto_serves_a_checkpoint_with_scales_as_one_without(
    checkpoint: Callable[[str], Reference], scaled: Path, impl: str
) -> None:
    said: list[str] = []
    loaded = load_model(settings(scaled, model_impl=impl), lambda done, what: said.append(what))
    expected = logits(runner_of(checkpoint("gqa").path, model_impl=impl), PROMPT)
    assert torch.equal(logits(loaded.runner, PROMPT), expected)
    note = "scales of an FP8 KV cache have no effect: kv_cache_dtype is auto, which is float32 here"
    assert [what for what in said if note in what]


def test_what_scales_are_used_is_said(checkpoint: Callable[[str], Reference], scaled: Path) -> None:
    for path, note in (
        (scaled, "the FP8 KV cache has the checkpoint's scales"),
        (checkpoint("gqa").path, "the FP8 KV cache has scales of 1: the checkpoint carries none"),
    ):
        said: list[str] = []
        fp8 = settings(path, kv_cache_dtype="fp8")
        load_model(fp8, lambda done, what, said=said: said.append(what))
        assert note in said


def with_quantization(path: Path, **quantization: object) -> None:
    values = json.loads((path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "compressed-tensors", **quantization}
    (path / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_a_configuration_that_quantises_the_kv_cache_alone_is_served(
    scaled: Path, impl: str
) -> None:
    expected = logits(runner_of(scaled, kv_cache_dtype="fp8", model_impl=impl), PROMPT)
    with_quantization(scaled, config_groups={}, kv_cache_scheme=SCHEME)
    found = logits(runner_of(scaled, kv_cache_dtype="fp8", model_impl=impl), PROMPT)
    assert torch.equal(found, expected)


def test_other_quantisation_is_refused(
    checkpoint: Callable[[str], Reference], scaled: Path, tmp_path: Path
) -> None:
    with_quantization(scaled, config_groups={"group_0": {}}, kv_cache_scheme=SCHEME)
    with pytest.raises(CheckpointError, match="quantization_config is "):
        runner_of(scaled, model_impl="native")
    with_quantization(scaled, kv_cache_scheme={**SCHEME, "strategy": "attn_head"})
    with pytest.raises(CheckpointError, match="strategy is 'attn_head'; supported: 'tensor'"):
        runner_of(scaled)
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint("gqa").path, bare)
    with_quantization(bare, kv_cache_scheme=SCHEME)
    with pytest.raises(ConfigError, match="has a kv_cache_scheme, but no tensor of the checkp"):
        runner_of(bare, kv_cache_dtype="fp8")
    assert runner_of(bare).caches[0].pool.dtype == torch.float32


def test_a_budget_in_bytes_holds_as_many_more_blocks_as_a_value_is_smaller(
    checkpoint: Callable[[str], Reference],
) -> None:
    path = checkpoint("bf16").path
    per_block = 3 * 2 * 2 * 4 * 16
    sizes = {"kv_cache_tokens": 0, "kv_cache_bytes": 1000 * per_block + 700}
    wide, narrow = (runner_of(path, kv_cache_dtype=d, **sizes) for d in ("auto", "fp8"))
    assert narrow.caches[0].shape.bytes_per_block == per_block
    assert wide.caches[0].shape.bytes_per_block == 2 * per_block
    assert (narrow.caches[0].num_blocks, wide.caches[0].num_blocks) == (1000, 500)
    assert narrow.caches[0].pool.nbytes == 1000 * per_block
    told = hello(config(path, kv_cache_dtype="fp8", **sizes), narrow, b"")["kv_groups"][0]
    assert (told["num_blocks"], told["bytes_per_block"]) == (1000, per_block)


def test_values_beyond_the_largest_are_saturated(
    checkpoint: Callable[[str], Reference], tmp_path: Path
) -> None:
    tensors = {name: tensor * 1e-5 for name, tensor in scale_tensors().items()}
    path = with_tensors(checkpoint("gqa").path, tmp_path / "small", tensors)
    runner = runner_of(path, kv_cache_dtype="fp8")
    assert logits(runner, PROMPT).isfinite().all()
    assert (runner.caches[0].pool.float().abs() == 448).any()


def test_latent_caches_are_refused(checkpoint: Callable[[str], Reference]) -> None:
    decoder = load_served(checkpoint("gqa").path, "auto", torch.device("cpu"))

    class Latent:
        latent_dim, num_layers, architecture = 8, LAYERS, "DeepseekV2ForCausalLM"

    class Model:
        spec, dtype, device = Latent(), decoder.dtype, decoder.device

    with pytest.raises(ConfigError, match="'fp8': DeepseekV2ForCausalLM caches latent vectors"):
        make_runner(config("x", kv_cache_dtype="fp8"), Model())  # type: ignore[arg-type]


def test_gpus_without_e4m3_are_refused() -> None:
    device = torch.device("cuda:0")
    with pytest.raises(ConfigError, match="cuda:0 has compute capability 8.0, 8.9 is needed"):
        refuse_capability(device, (8, 0))
    refuse_capability(device, (8, 9))
    refuse_capability(device, (9, 0))


def test_unknown_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'int8': Input should be 'auto' or"):
        config("x", kv_cache_dtype="int8")
