# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of mixtures of experts: how they are stored, and what of them is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from worker_testing import Driver, PlanBuilder, load_runner, logits_of

from slipstream.models.checkpoint import Checkpoint
from slipstream.models.config_reader import CheckpointError
from slipstream.repository.checkpoint import read_checkpoint
from slipstream.worker.engine import ModelRunner
from slipstream.worker.frames import SeqFlag

VOCAB = 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
}
DEEPSEEK = {
    **SIZES,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
LLAMA4 = {**SIZES, "intermediate_size_mlp": 40, "num_local_experts": 4, "head_dim": 16}
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=16),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, head_dim=16, sliding_window=9),
    "llama4": Llama4TextConfig(**{**LLAMA4, "num_experts_per_tok": 1}),
    "deepseek_v2": DeepseekV2Config(**DEEPSEEK),
    "deepseek_v3": DeepseekV3Config(**DEEPSEEK, n_group=4, topk_group=2),
}


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[PreTrainedModel, Path]]:
    """Makes a random model, and a checkpoint of it with some fields of config.json changed."""

    def make(name: str, **fields: Any) -> tuple[PreTrainedModel, Path]:
        path = tmp_path / name
        model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
        randomised(model).save_pretrained(path)
        edit_config(path, fields)
        return model, path

    return make


def edit_config(path: Path, fields: dict[str, Any]) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def logits(runner: ModelRunner, tokens: list[int]) -> np.ndarray:
    driver = Driver(runner)
    plan = driver.new_plan()
    sequence = driver.start(plan, 0, tokens)
    driver.add(plan, sequence, len(tokens), flags=SeqFlag.CONTEXT_LOGITS)
    return logits_of(runner.step(plan.build()), VOCAB)[0]


def assert_same_logits(path: Path, model: PreTrainedModel) -> None:
    tokens = np.random.default_rng(1).integers(3, VOCAB, 40).tolist()
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    ours = logits(load_runner(path), tokens)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_mxfp4_experts_are_read_as_they_are_stored(saved) -> None:
    model, path = saved("gpt_oss", quantization_config={"quant_method": "mxfp4"})
    tensors = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = parameter.shape
            shape = (experts, outputs, inputs // 32)
            blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
            del tensors[name]
            tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
            parameter.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, path / "model.safetensors")
    assert_same_logits(path, model)


def test_mxfp4_tensors_that_do_not_fit_are_named(saved) -> None:
    _, path = saved("gpt_oss")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    del tensors[name]
    tensors[name + "_blocks"] = torch.zeros(4, 64, 2, 16, dtype=torch.uint8)
    tensors[name + "_scales"] = torch.zeros(4, 64, 2, dtype=torch.uint8)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"down_proj_blocks \(4, 64, 2, 16\), .*_scales"):
        load_runner(path)
    tensors[name + "_scales"] = torch.zeros(4, 64, 1, dtype=torch.uint8)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"do not fit config.json: .*down_proj_blocks"):
        load_runner(path)


def test_the_text_part_of_llama4_with_vision(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**LLAMA4, "pad_token_id": 0, "num_experts_per_tok": 1}
    config = Llama4Config(text_config=text, vision_config=vision, attn_implementation="eager")
    model = randomised(Llama4ForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    assert_same_logits(tmp_path, model.language_model)
    edit_config(tmp_path, {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(CheckpointError, match="quantization_config is {'quant_method': 'fp8'}"):
        Checkpoint(tmp_path)


def test_layers_that_draft_are_left_out(saved) -> None:
    model, path = saved("deepseek_v3")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(64, 128)
    tensors["model.layers.2.mlp.gate.weight"] = torch.zeros(8, 64)
    save_file(tensors, path / "model.safetensors")
    assert_same_logits(path, model)
    tensors["model.layers.20.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected tensors: model.layers.20.eh_proj"):
        load_runner(path)


def test_blocks_of_latents_are_copied_in_part(saved) -> None:
    model, path = saved("deepseek_v2")
    runner = load_runner(path)
    first = np.random.default_rng(3).integers(3, VOCAB, 8).tolist()
    runner.step(PlanBuilder(1).admit(0).seq(0, first, 0, [5, 6]).build())
    # Shares block 5 and the first three positions of block 6, then goes on by itself.
    second = first[:7] + np.random.default_rng(4).integers(3, VOCAB, 6).tolist()
    plan = PlanBuilder(2).retire(0).admit(1).copy(6, 11, 3)
    plan.seq(1, second[7:], 7, [5, 11, 12, 13], SeqFlag.CONTEXT_LOGITS)
    ours = logits_of(runner.step(plan.build()), VOCAB)[0]
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([second])).logits[0, 7:].numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_the_plan_knows_what_the_worker_caches(saved, name: str) -> None:
    _, path = saved(name)
    shapes = [cache.shape for cache in load_runner(path).caches]
    facts = read_checkpoint(str(path))
    per_token = facts.kv_bytes_per_token("float32")
    assert sum(s.bytes_per_block for s in shapes) == shapes[0].tokens_per_block * per_token
    expected = {"gpt_oss": 2 * 4 * 16}.get(name, 20 + 8)
    assert facts.kv_bytes_per_token("float32") == 2 * expected * 4


def test_the_runner_counts_the_load_of_experts(saved) -> None:
    _, path = saved("deepseek_v3")
    runner = load_runner(path)
    load = runner.expert_load
    assert load is not None
    assert load.layers == (1,)
    for count in (40, 1):
        logits(runner, np.random.default_rng(count).integers(3, VOCAB, count).tolist())
    counts = load.counts()
    assert counts.shape == (1, 8)
    assert counts.sum() == 41 * 2
    assert load.imbalance() == [counts.max().item() / (41 * 2 / 8)]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "mixtral",
            {"num_experts_per_tok": 5},
            r"num_experts_per_tok is 5; supported: at most num",
        ),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
        ("mixtral", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config is"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "awq"}},
            "quantization_config.quant_method is 'awq'; supported: 'mxfp4'",
        ),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window is True; supported: False"),
        ("qwen2_moe", {"mlp_only_layers": "0"}, "mlp_only_layers is '0'; supported: a list of int"),
        (
            "llama4",
            {"layer_types": ["full_attention"]},
            "layer_types is .* one entry for each of 2",
        ),
        ("llama4", {"layer_types": ["sliding_attention"] * 2}, "layer_types is .* a list of 'chun"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; supported: 'gre"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True; supported: False"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; supported: 'sof"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq is 2; supported: 1"),
        (
            "deepseek_v3",
            {"topk_method": "greedy"},
            "topk_method is 'greedy'; supported: 'noaux_tc'",
        ),
        ("deepseek_v3", {"n_group": 3}, "n_group is 3; supported: a divisor of 8 experts"),
        ("deepseek_v3", {"topk_group": 5}, "topk_group is 5; supported: at most 4 groups"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2; supported: 4"),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(saved, name, fields, message) -> None:
    _, path = saved(name, **fields)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(path)
