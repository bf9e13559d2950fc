# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.config import SlipstreamConfig
from slipstream.repository.checkpoint import CheckpointError, UnmeasuredError, read_checkpoint
from slipstream.repository.plan import (
    CPU_KV_CACHE_FRACTION,
    GPU_KV_CACHE_FRACTION,
    Memory,
    PlanError,
    make_plan,
    size,
)

from .conftest import CONFIG, SHAPES, write_safetensors

Configure = Callable[..., SlipstreamConfig]
# 2 (keys, values) x 2 layers x 2 heads x 8 x 2 bytes
PER_TOKEN = 128
WEIGHTS = 1024 * 2
# 2,048 tokens x (5 x 32 hidden + 3 x 64 of the MLP) x 2 bytes
STEP = 2048 * 352 * 2


def memory(free: int) -> Memory:
    return Memory("cpu", free)


def test_fraction_of_what_the_weights_leave(configure: Configure) -> None:
    config = configure(kv_cache_fraction=0.5, tokens_per_block=16)
    plan = make_plan(config, memory(WEIGHTS + 20 * 16 * PER_TOKEN + 100))
    assert plan.weight_bytes == WEIGHTS
    assert plan.kv_bytes_per_token == PER_TOKEN
    assert plan.bytes_per_block == 16 * PER_TOKEN
    assert plan.num_blocks == 10
    assert plan.kv_tokens == 160
    assert plan.step_bytes == STEP
    assert plan.total_bytes == WEIGHTS + 160 * PER_TOKEN + STEP
    assert plan.max_seq_len == 128


def test_on_a_gpu_a_step_is_taken_off_first(configure: Configure) -> None:
    config = configure(kv_cache_fraction=0.5, tokens_per_block=16)
    free = WEIGHTS + STEP + 20 * 16 * PER_TOKEN + 100
    plan = make_plan(config, Memory("cuda:0 (NVIDIA H200)", free))
    assert plan.num_blocks == 10
    rows = dict(plan.rows())
    assert rows["activations"] == "about 1.4 MiB, in a step of 2,048 tokens"
    assert rows["total"] == "1.4 MiB, and beside it CUDA itself and its graphs"
    with pytest.raises(
        PlanError, match="the KV cache holds nothing: kv_cache_fraction 0.5 of what"
    ):
        make_plan(config, Memory("cuda:0 (NVIDIA H200)", WEIGHTS + STEP - 1))


@pytest.mark.parametrize(
    ("device", "gib", "given", "expected"),
    [
        ("cpu", 0, {}, (64, 2048)),
        ("cuda:0 (small)", 24, {}, (256, 2048)),
        ("cuda:0 (large)", 80, {}, (256, 8192)),
        ("cuda:0 (large)", 80, {"max_num_seqs": 3}, (3, 8192)),
        ("cpu", 0, {"max_num_seqs": 3000}, (3000, 3000)),
        ("cpu", 0, {"max_num_tokens": 16}, (16, 16)),
        ("cuda:0 (large)", 80, {"max_num_tokens": 512}, (256, 512)),
        ("cpu", 0, {"max_num_seqs": 5, "max_num_tokens": 7}, (5, 7)),
    ],
)
def test_what_a_step_holds_suits_the_device_where_it_is_left_open(
    configure: Configure, device: str, gib: int, given: dict, expected: tuple[int, int]
) -> None:
    plan = make_plan(configure(**given), Memory(device, 16 << 30, gib << 30))
    assert (plan.max_num_seqs, plan.max_num_tokens) == expected


def test_tokens_are_rounded_up(configure: Configure) -> None:
    plan = make_plan(configure(kv_cache_tokens=33), memory(1 << 20))
    assert (plan.num_blocks, plan.budget_source) == (2, "kv_cache_tokens")


def test_of_several_sizes_the_smallest_holds(configure: Configure) -> None:
    block = 32 * PER_TOKEN

    def planned(**sizes: Any) -> tuple[int, str]:
        plan = make_plan(configure(**sizes), memory(WEIGHTS + 80 * block))
        return plan.num_blocks, plan.budget_source.split()[0]

    assert planned(kv_cache_tokens=64, kv_cache_bytes=3 * block) == (2, "kv_cache_tokens")
    assert planned(kv_cache_tokens=128, kv_cache_bytes=3 * block) == (3, "kv_cache_bytes")
    assert planned(kv_cache_tokens=64, kv_cache_fraction=0.5) == (2, "kv_cache_tokens")
    assert planned(kv_cache_tokens=2000, kv_cache_fraction=0.5) == (40, "kv_cache_fraction")
    assert planned(kv_cache_tokens=2000) == (63, "kv_cache_tokens")
    assert planned(kv_cache_bytes=60 * block, kv_cache_fraction=0.5) == (40, "kv_cache_fraction")
    assert planned(kv_cache_bytes=20 * block, kv_cache_fraction=0.5) == (20, "kv_cache_bytes")


def test_bytes_are_rounded_down(configure: Configure) -> None:
    plan = make_plan(configure(kv_cache_bytes=3 * 32 * PER_TOKEN - 1), memory(1 << 20))
    assert (plan.num_blocks, plan.budget_source) == (2, "kv_cache_bytes")


def test_dtype_doubles_everything(configure: Configure) -> None:
    plan = make_plan(configure(dtype="float32", kv_cache_tokens=32), memory(1 << 20))
    assert (plan.weight_bytes, plan.kv_bytes_per_token) == (2 * WEIGHTS, 2 * PER_TOKEN)


def test_an_fp8_cache_takes_a_byte_a_value(configure: Configure) -> None:
    config = configure(kv_cache_dtype="fp8", kv_cache_bytes=64 * 32 * PER_TOKEN)
    plan = make_plan(config, memory(1 << 20))
    assert (plan.dtype, plan.weight_bytes) == ("bfloat16", WEIGHTS)
    assert (plan.kv_bytes_per_token, plan.num_blocks) == (PER_TOKEN // 2, 128)
    rows = dict(plan.rows())
    assert rows["KV cache per token"] == "2 x 2 layers x 2 heads x 8 x fp8 = 64 B"
    assert rows["KV cache"] == "128 blocks = 4,096 tokens = 256.0 KiB"


def test_rows_say_the_arithmetic(configure: Configure) -> None:
    plan = make_plan(configure(kv_cache_tokens=256), memory(1 << 20))
    rows = dict(plan.rows())
    assert rows["weights"] == "1,024 x bfloat16 = 2.0 KiB"
    assert rows["KV cache per token"] == "2 x 2 layers x 2 heads x 8 x bfloat16 = 128 B"
    assert rows["KV cache"] == "8 blocks = 256 tokens = 32.0 KiB"
    assert "2 of that length fit at once" in rows["longest request"]
    assert rows["activations"] == "about 1.4 MiB, in a step of 2,048 tokens"
    assert rows["total"] == "1.4 MiB"
    assert "side by side: up to 2.8 MiB" in rows["a reload"]


@pytest.mark.parametrize(
    ("options", "free", "message"),
    [
        ({}, 1000, r"does not fit: weights take 1,024 x bfloat16 = 2\.0 KiB, cpu has 1000 B free"),
        (
            {"kv_cache_tokens": 3200},
            10000,
            r"kv_cache_tokens asks for 400\.0 KiB; cpu has 9\.8 KiB",
        ),
        ({}, WEIGHTS + 100, r"kv_cache_fraction 0\.25 .* gives 25 B, one block of 32 tokens takes"),
        ({"max_seq_len": 129}, 1 << 20, "max_seq_len is 129; the checkpoint's limit is 128"),
    ],
)
def test_the_impossible_is_refused(
    configure: Configure, options: dict[str, Any], free: int, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(configure(**options), memory(free))


LATENT = {
    **CONFIG,
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
MIXTURE = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def test_deterministic_is_refused_where_the_worker_would(
    checkpoint: Path, configure: Configure
) -> None:
    def plan(device: str = "cpu", **options: Any) -> None:
        make_plan(configure(deterministic=True, **options), Memory(device, 1 << 30))

    plan()
    with pytest.raises(PlanError, match="deterministic is true: .* the device is cuda:0"):
        plan("cuda:0 (NVIDIA H200)")
    with pytest.raises(PlanError, match="deterministic is true: .* kv_cache_dtype is 'fp8'"):
        plan(kv_cache_dtype="fp8")
    with pytest.raises(PlanError, match="deterministic is true: .* attention_backend is 'sdpa'"):
        plan(attention_backend="sdpa")
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "model_type": "llama"}))
    own = "LlamaForCausalLM runs on transformers' own forward"
    with pytest.raises(PlanError, match=f"deterministic is true: {own}"):
        plan(model_impl="transformers")
    for served in (MIXTURE, LATENT):
        (checkpoint / "config.json").write_text(json.dumps(served))
        plan()


def test_missing_gpu_is_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PlanError, match="device is 'cuda:3'; nvidia-smi lists 0 GPUs"):
        make_plan(configure(device="cuda:3"))


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that tells of them: 1000, 1001 and 1002 MiB are free."""
    tool = tmp_path / "nvidia-smi"
    lines = [
        f"{i}, NVIDIA H200, 143771, {1000 + i}, GPU-{uuid}-0000"
        for i, uuid in enumerate(("7a51", "7a62", "c0de"))
    ]
    tool.write_text("#!/bin/sh\ncat <<end\n" + "\n".join(lines) + "\nend\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("three_gpus")
def test_gpus_are_read_from_nvidia_smi(configure: Configure) -> None:
    plan = make_plan(configure(kv_cache_tokens=32))
    assert plan.memory == Memory("cuda:0 (NVIDIA H200)", 1000 << 20, 143771 << 20)
    assert plan.max_num_tokens == 8192
    plan = make_plan(configure(kv_cache_tokens=32, device="cuda:2"))
    assert plan.memory == Memory("cuda:2 (NVIDIA H200)", 1002 << 20, 143771 << 20)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("2", [2]),
        ("1,0", [1, 0]),
        (" 2 , 1 ", [2, 1]),
        ("0,7,1", [0]),
        ("1,-1,0", [1]),
        ("1,,0", [1]),
        ("2,2", []),
        ("GPU-c0de-0000", [2]),
        ("GPU-7a62,GPU-c", [1, 2]),
        ("GPU-7a", []),  # of two
        ("GPU-c0de,GPU-ffff,GPU-7a51", [2]),
        ("NoDevFiles", []),
        ("-1", []),
        ("", []),
    ],
)
def test_what_cuda_shows_is_planned_for(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, visible: str, indices: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for number, index in enumerate(indices):
        memory = make_plan(configure(kv_cache_tokens=32, device=f"cuda:{number}")).memory
        other = f", nvidia-smi's {index}" if index != number else ""
        name, free = f"cuda:{number} (NVIDIA H200{other})", (1000 + index) << 20
        assert memory == Memory(name, free, 143771 << 20)
    past = f"cuda:{len(indices)}"
    message = f"device is '{past}'; nvidia-smi lists 3 GPUs, CUDA_VISIBLE_DEVICES '{visible}' shows"
    with pytest.raises(PlanError, match=re.escape(f"{message} {len(indices)}")):
        make_plan(configure(kv_cache_tokens=32, device=past))
    automatic = make_plan(configure()).memory.device
    assert automatic.partition(" ")[0] == ("cuda:0" if indices else "cpu")
    fraction = "0.9" if indices else "0.25"
    assert make_plan(configure()).budget_source.startswith(f"kv_cache_fraction {fraction} ")


@pytest.mark.usefixtures("three_gpus")
def test_the_memory_that_is_given_is_planned_for(configure: Configure) -> None:
    """Whatever there is here."""
    plan = make_plan(configure(), memory(1 << 30))
    assert plan.budget_source.startswith("kv_cache_fraction 0.25 ")


@pytest.mark.usefixtures("three_gpus")
def test_a_part_of_a_gpu_is_not_measured(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(UnmeasuredError, match="CUDA_VISIBLE_DEVICES is 'MIG-1234'; nvidia-smi"):
        make_plan(configure())
    assert make_plan(configure(device="cpu")).memory.device == "cpu"


def test_on_a_cpu_the_cache_takes_less_by_default(configure: Configure) -> None:
    from slipstream.worker.memory import KV_CACHE_FRACTIONS

    def source(device: str, **options: Any) -> str:
        return make_plan(configure(**options), Memory(device, 1 << 30)).budget_source

    assert source("cpu").startswith("kv_cache_fraction 0.25 ")
    assert source("cuda:0 (NVIDIA H200)").startswith("kv_cache_fraction 0.9 ")
    assert source("cpu", kv_cache_fraction=0.5).startswith("kv_cache_fraction 0.5 ")
    # The plan is for the worker that will run.
    assert KV_CACHE_FRACTIONS == {"cpu": CPU_KV_CACHE_FRACTION, "cuda": GPU_KV_CACHE_FRACTION}


def test_sharded_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        shard = f"model-{number}.safetensors"
        write_safetensors(tmp_path / shard, {name: shape})
        index[name] = shard
    write_safetensors(tmp_path / "unused.safetensors", {"x": [999]})
    text = json.dumps({"weight_map": index})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert read_checkpoint(str(tmp_path)).parameters == 1024


def test_latent_attention_caches_one_vector_a_token(checkpoint: Path, configure: Configure) -> None:
    (checkpoint / "config.json").write_text(json.dumps(LATENT))
    plan = make_plan(configure(kv_cache_tokens=32), memory(1 << 20))
    assert plan.kv_bytes_per_token == 2 * (12 + 4) * 2
    assert dict(plan.rows())["KV cache per token"] == "2 layers x 16 latent x bfloat16 = 64 B"
    with pytest.raises(PlanError, match="kv_cache_dtype is 'fp8'; .* caches latent vectors"):
        make_plan(configure(kv_cache_tokens=32, kv_cache_dtype="fp8"), memory(1 << 20))


def test_packed_weights_count_as_what_they_become(checkpoint: Path) -> None:
    shapes = {**SHAPES, "w_blocks": [3, 5, 2, 16], "w_scales": [3, 5, 2]}
    write_safetensors(checkpoint / "model.safetensors", shapes, packed=("w_blocks", "w_scales"))
    assert read_checkpoint(str(checkpoint)).parameters == 1024 + 3 * 5 * 2 * 32


def test_the_spec_says_what_the_memory_holds(checkpoint: Path) -> None:
    """A head size that the family has and config.json leaves out; positions that yarn adds."""
    config = {**CONFIG, "architectures": ["Qwen3ForCausalLM"]}
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    (checkpoint / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    facts = read_checkpoint(str(checkpoint))
    assert (facts.head_dim, facts.max_seq_len) == (128, 512)
    assert facts.kv_bytes_per_token("bfloat16") == 2 * 2 * 2 * 128 * 2


# Three layers see 24 positions, the fourth all of them.
WINDOWED = {
    **CONFIG,
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 8,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "sliding_window": 24,
}
PER_LAYER = 2 * 2 * 8 * 2  # bytes of a token


@pytest.fixture
def windowed(checkpoint: Path, configure: Configure) -> Configure:
    (checkpoint / "config.json").write_text(json.dumps(WINDOWED))
    sizes = {"tokens_per_block": 8, "max_num_seqs": 3, "max_num_tokens": 16}
    return lambda **options: configure(**sizes, **options)


def test_layers_with_a_window_take_what_they_can_use(windowed: Configure) -> None:
    """A sequence has its window in up to 4 blocks of 8 and 1 to go on in; a step adds 2."""
    plan = make_plan(windowed(kv_cache_tokens=800), memory(1 << 20))
    full, window = plan.groups
    assert (full.num_layers, full.num_blocks, full.bytes_per_block) == (1, 100, 8 * PER_LAYER)
    assert (window.num_layers, window.num_blocks) == (3, 3 * 5 + 2)
    assert window.bytes_per_block == 3 * 8 * PER_LAYER
    assert plan.kv_bytes == (100 + 17 * 3) * 8 * PER_LAYER
    rows = plan.rows()
    of = [value for label, value in rows if label == "KV cache of"]
    assert of == [
        "1 layer with full attention: 100 blocks = 800 tokens = 50.0 KiB",
        "3 layers with a window of 24: 17 blocks = 136 tokens = 25.5 KiB",
    ]
    assert ("KV cache", "75.5 KiB") in rows
    assert "128 tokens; 3 of that length fit at once" in dict(rows)["longest request"]


def test_the_full_group_gets_what_windows_leave(windowed: Configure) -> None:
    block = 8 * PER_LAYER
    plan = make_plan(windowed(kv_cache_bytes=(17 * 3 + 40) * block + 1), memory(1 << 20))
    assert [group.num_blocks for group in plan.groups] == [40, 17]
    scarce = make_plan(windowed(kv_cache_bytes=40 * block), memory(1 << 20))
    assert [group.num_blocks for group in scarce.groups] == [10, 10]


def test_a_window_that_no_request_outgrows_is_none(windowed: Configure) -> None:
    plan = make_plan(windowed(kv_cache_tokens=800, max_seq_len=24), memory(1 << 20))
    assert [(group.kind, group.num_layers) for group in plan.groups] == [("full", 4)]
    assert [label for label, _ in plan.rows()].count("KV cache") == 1


def test_a_model_of_windows_alone(checkpoint: Path, configure: Configure) -> None:
    config = {**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 24}
    (checkpoint / "config.json").write_text(json.dumps(config))
    sizes = {"tokens_per_block": 8, "max_num_seqs": 3, "max_num_tokens": 16}
    block = 8 * PER_TOKEN
    plan = make_plan(configure(kv_cache_bytes=30 * block, **sizes), memory(1 << 20))
    assert [(group.kind, group.num_blocks) for group in plan.groups] == [("sliding", 30)]
    assert make_plan(configure(kv_cache_tokens=8, **sizes), memory(1 << 20)).num_blocks == 7
    with pytest.raises(PlanError, match="one block of 8 tokens takes 1.0 KiB, and 7 are needed"):
        make_plan(configure(kv_cache_bytes=6 * block, **sizes), memory(1 << 20))


def test_what_the_worker_refuses_is_not_planned(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": "mish"}))
    with pytest.raises(CheckpointError, match="checkpoint: config.json: hidden_act is 'mish'"):
        read_checkpoint(str(checkpoint))


def test_architectures_without_a_family_are_measured(checkpoint: Path) -> None:
    config = {**CONFIG, "architectures": ["ArceeForCausalLM"], "model_type": "arcee"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    facts = read_checkpoint(str(checkpoint))
    assert facts.kv_bytes_per_token("bfloat16") == PER_TOKEN
    assert (facts.stored_dtype, facts.max_seq_len) == ("bfloat16", 128)
    with pytest.raises(CheckpointError, match="ArceeForCausalLM is not supported"):
        read_checkpoint(str(checkpoint), impl="native")


def test_both_implementations_take_the_same_memory(configure: Configure, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "model_type": "llama"}))
    config = configure(kv_cache_tokens=64)
    model = config.model.model_copy(update={"model_impl": "transformers"})
    forced = config.model_copy(update={"model": model})
    ours, theirs = make_plan(config, memory(1 << 20)), make_plan(forced, memory(1 << 20))
    assert type(ours.facts.spec) is not type(theirs.facts.spec)
    assert ours.groups == theirs.groups
    pairs = zip(ours.rows(), theirs.rows(), strict=True)
    differing = [(mine, other) for mine, other in pairs if mine != other]
    assert [mine[0] for mine, _ in differing] == ["activations", "total", "a reload"]
    assert [other[1] for _, other in differing[:2]] == [
        "known only once the model is loaded",
        "10.0 KiB, and beside it activations",
    ]


def test_code_of_a_checkpoint_does_not_run_for_a_plan(checkpoint: Path) -> None:
    config = {**CONFIG, "architectures": ["NovelLM"], "model_type": "novel"}
    config["auto_map"] = {"AutoConfig": "novel.NovelConfig"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "novel.py").write_text("raise SystemError('this code has run')\n")
    with pytest.raises(CheckpointError, match="it runs with trust_remote_code"):
        read_checkpoint(str(checkpoint))
    with pytest.raises(UnmeasuredError, match="checkpoint: its sizes are known only to the code"):
        read_checkpoint(str(checkpoint), trust_remote_code=True)


def test_demo_model_agrees_with_the_worker() -> None:
    import torch

    from slipstream.demo import demo_model_path
    from slipstream.models.checkpoint import Checkpoint
    from slipstream.models.loader import load_decoder

    path = demo_model_path()
    decoder = load_decoder(Checkpoint(path), torch.bfloat16, torch.device("cpu"))
    assert read_checkpoint(str(path)).weight_bytes("bfloat16") == decoder.weight_bytes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: "),
        (lambda folder: (folder / "config.json").write_text("{}"), "none is not supported"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors files"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"a" * 20), "not a safetensors"),
    ],
)
def test_damaged_checkpoints_are_named(
    checkpoint: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(str(checkpoint))
    assert message in str(caught.value)


def test_sizes_for_people() -> None:
    assert [size(n) for n in (5, 1536, 3 << 20, 5 << 30)] == [
        "5 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]
