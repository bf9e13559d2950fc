# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and configurations that cannot be honoured are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from worker_checkpoints import LLAMA3_ROPE
from worker_testing import config, load_runner

from slipstream.layers.rope_scaling import Llama3Scaling
from slipstream.models.checkpoint import Checkpoint, resolve_checkpoint
from slipstream.models.config_reader import CheckpointError
from slipstream.models.loader import choose_dtype, load_decoder
from slipstream.tokenization.token_table import export_token_table
from slipstream.worker import memory
from slipstream.worker.config import ConfigError, WorkerConfig
from slipstream.worker.startup import choose_device, make_runner, token_table

CPU = torch.device("cpu")


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    """A copy of a variant whose config.json and tensors can be edited."""

    def copy(variant="gqa", *, drop=(), edit_tensors=None, **fields):
        path = tmp_path / "model"
        shutil.copytree(checkpoint(variant).path, path)
        file = path / "config.json"
        values = json.loads(file.read_text())
        values.update(fields)
        for name in drop:
            del values[name]
        file.write_text(json.dumps(values))
        if edit_tensors:
            tensors = load_file(path / "model.safetensors")
            edit_tensors(tensors)
            save_file(tensors, path / "model.safetensors")
        return path

    return copy


def load(path, **options):
    return load_decoder(Checkpoint(path), torch.float32, CPU, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "mish"}, "config.json: hidden_act is 'mish'; supported: 'silu', 'swish'"),
        ({"sliding_window": 8}, "config.json: sliding_window is 8; supported: absent"),
        ({"hidden_size": "64"}, "config.json: hidden_size is '64'; supported: a int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; supported: a number above 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; supported: a divisor of 4"),
        ({"head_dim": 15}, "head_dim is 15; supported: an even number"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"architectures": ["FooForCausalLM"]}, "FooForCausalLM is not supported; supported: .*Ll"),
        ({"architectures": []}, "none is not supported; supported: .*LlamaForCausalLM"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'; supported: a token id or a list of them"),
        (
            {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters.rope_type is 'ntk'; supported: 'default', 'linear', 'llama3', 'yarn'",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.type is 'dynamic'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
            "config.json: rope_parameters.factor is missing",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor is 0.5; supported: 1",
        ),
    ],
)
def test_config_errors_name_the_field(copy_of, fields, message):
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[").replace("{", r"\{")):
        Checkpoint(copy_of(**fields))


def test_missing_config_fields_are_named(copy_of):
    with pytest.raises(CheckpointError, match="config.json: intermediate_size is missing"):
        Checkpoint(copy_of(drop=["intermediate_size"]))


def test_both_spellings_of_transformers_mean_the_same(checkpoint, copy_of):
    modern = Checkpoint(checkpoint("llama3").path).spec
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    path = copy_of(
        "llama3",
        drop=["rope_parameters", "dtype"],
        rope_theta=LLAMA3_ROPE["rope_theta"],
        rope_scaling=scaling,
        torch_dtype="float32",
    )
    assert Checkpoint(path).spec == modern
    assert modern.layers[0].attention.rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)
    assert modern.dtype == "float32"


def test_missing_and_unexpected_tensors_are_named(copy_of):
    def edit(tensors):
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.zeros(16)

    with pytest.raises(
        CheckpointError,
        match="missing tensors: model.layers.1.self_attn.k_proj.weight; "
        "unexpected tensors: model.layers.0.self_attn.q_norm.weight",
    ):
        load(copy_of(edit_tensors=edit))


def test_old_rotary_buffers_and_a_stored_tied_head_are_tolerated(copy_of):
    def edit(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    decoder = load(copy_of("mha_tied", edit_tensors=edit))
    assert decoder.lm_head.weight.data_ptr() == decoder.embedding.weight.data_ptr()


def test_shapes_that_do_not_fit_are_named(copy_of):
    with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight \(211, 64\) for embed"):
        load(copy_of(vocab_size=212))


def test_files_that_are_missing_are_named(copy_of, tmp_path):
    path = copy_of("sharded")
    shard = next(path.glob("model-00002-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"files are missing: {shard.name}"):
        load(path)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(path / "config.json", empty)
    (empty / "consolidated.pth").touch()
    with pytest.raises(CheckpointError, match=r"consolidated.pth must be converted to safetensors"):
        load(empty)
    with pytest.raises(CheckpointError, match=r"nowhere is not a directory"):
        resolve_checkpoint("/nowhere", None)


def test_damaged_tensor_files_are_named(copy_of):
    path = copy_of()
    (path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="model.safetensors: "):
        load(path)


def test_end_ids_come_from_both_files(checkpoint, copy_of):
    path = copy_of()
    assert Checkpoint(path).spec.end_ids == (2, 7)
    (path / "generation_config.json").write_text('{"eos_token_id": [9, 2], "pad_token_id": 4}')
    spec = Checkpoint(path).spec
    assert (spec.end_ids, spec.pad_id) == ((2, 7, 9), 4)


def test_dtype_choice(checkpoint):
    spec = Checkpoint(checkpoint("bf16").path).spec
    assert choose_dtype("auto", spec, CPU) is torch.bfloat16
    assert choose_dtype("float32", spec, CPU) is torch.float32
    assert choose_dtype("float16", spec, CPU) is torch.float16


def test_dummy_weights_need_no_tensors_and_repeat(copy_of):
    path = copy_of()
    (path / "model.safetensors").unlink()
    first, again = load(path, dummy_seed=3), load(path, dummy_seed=3)
    other = load(path, dummy_seed=4)
    assert torch.equal(first.layers[0].attention.qkv.weight, again.layers[0].attention.qkv.weight)
    assert not torch.equal(
        first.layers[0].attention.qkv.weight, other.layers[0].attention.qkv.weight
    )
    assert torch.equal(first.norm.weight, torch.ones(64))


def test_progress_reaches_one(checkpoint):
    seen = []
    load(checkpoint("gqa").path, progress=lambda fraction, what: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def table_of(path, tokenizer=""):
    return token_table(config(path, tokenizer=str(tokenizer)), path)


def save_tokenizer(path, *words):
    ids = {word: number for number, word in enumerate(("<unk>", *words))}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(ids, unk_token="<unk>")), unk_token="<unk>"
    )
    tokenizer.save_pretrained(path)
    return export_token_table(tokenizer)


def test_a_checkpoint_without_tokenizer_has_no_table(checkpoint):
    path = checkpoint("gqa").path
    assert table_of(path) == b""
    assert table_of(path, f"{path}/") == b""  # it is named, but as the model's


def test_a_checkpoint_with_a_tokenizer_has_the_exported_table(copy_of):
    path = copy_of()
    table = save_tokenizer(path, "hello", "world")
    assert b"hello" in table
    assert table_of(path) == table_of(path, path) == table


def test_the_table_is_of_the_tokenizer_that_is_configured(copy_of, tmp_path):
    path, other = copy_of(), tmp_path / "other"
    table = save_tokenizer(other, "hej")
    assert table_of(path, other) == table
    save_tokenizer(path, "hello")
    assert table_of(path, other) == table


def test_a_configured_tokenizer_that_is_none_is_named(copy_of, tmp_path):
    path, other = copy_of(), tmp_path / "other"
    save_tokenizer(path, "hello")
    for _ in range(2):  # no directory; one without a tokenizer
        with pytest.raises(ConfigError, match=f"tokenizer is '{other}': it cannot be loaded: "):
            table_of(path, other)
        other.mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_num_seq": 3}, "unknown key 'max_num_seq', the nearest is 'max_num_seqs'"),
        ({"frame_version": 2}, "frame_version is 2: the executor speaks frames 2, this worker 3"),
        ({"dtype": "int8"}, "dtype is 'int8': Input should be 'auto'"),
        ({"device": "tpu"}, "device is 'tpu': expected auto, cpu, cuda or cuda:N"),
        ({"tokens_per_block": 0}, "tokens_per_block is 0: Input should be greater than or equal"),
        ({"max_num_seqs": "8"}, "max_num_seqs is '8': Input should be a valid integer"),
        ({"world_size": 2}, "world_size is 2; this worker supports 1"),
        ({"kv_cache_fraction": 1.5}, "kv_cache_fraction is 1.5: Input should be less than"),
    ],
)
def test_worker_configuration_errors(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config("x", **overrides)
    with pytest.raises(ConfigError, match="version is missing; frame_version is missing"):
        WorkerConfig.from_map({"model": "x"})


def test_kv_cache_sizes(checkpoint):
    path = checkpoint("gqa").path
    per_block = 3 * 2 * 2 * 4 * 16 * 4
    by_bytes = load_runner(path, kv_cache_tokens=0, kv_cache_bytes=10 * per_block + 5)
    assert by_bytes.caches[0].shape.bytes_per_block == per_block
    assert by_bytes.caches[0].num_blocks == 10
    assert by_bytes.caches[0].pool.nbytes == 10 * per_block
    with pytest.raises(ConfigError, match=f"kv_cache_bytes leaves 99 .*tokens takes {per_block}"):
        load_runner(path, kv_cache_tokens=0, kv_cache_bytes=99)
    share = load_runner(path, kv_cache_tokens=0, kv_cache_fraction=0.01)
    assert share.caches[0].num_blocks > 1000


def test_of_several_kv_cache_sizes_the_smallest_holds(checkpoint, monkeypatch):
    path = checkpoint("gqa").path
    per_block = 3 * 2 * 2 * 4 * 16 * 4
    monkeypatch.setattr(memory, "free_memory", lambda device: 80 * per_block)

    def blocks(**sizes):
        return load_runner(path, **{"kv_cache_tokens": 0} | sizes).caches[0].num_blocks

    assert blocks(kv_cache_tokens=41) == 11
    assert blocks(kv_cache_tokens=41, kv_cache_bytes=20 * per_block) == 11
    assert blocks(kv_cache_tokens=81, kv_cache_bytes=20 * per_block) == 20
    assert blocks(kv_cache_tokens=41, kv_cache_fraction=0.5) == 11
    assert blocks(kv_cache_tokens=400, kv_cache_fraction=0.5) == 40
    assert blocks(kv_cache_tokens=400) == 100  # no share of the free memory was asked for
    assert blocks(kv_cache_bytes=20 * per_block, kv_cache_fraction=0.5) == 20
    assert blocks(kv_cache_bytes=60 * per_block, kv_cache_fraction=0.5) == 40
    assert blocks() == 20
    with pytest.raises(ConfigError, match="kv_cache_bytes leaves 1 bytes"):
        blocks(kv_cache_tokens=41, kv_cache_bytes=1)


def test_max_seq_len_is_bounded_by_the_checkpoint(checkpoint):
    decoder = load(checkpoint("gqa").path)
    with pytest.raises(ConfigError, match="max_seq_len is 2049; the checkpoint's limit is 2048"):
        make_runner(config("x", max_seq_len=2049), decoder)
    assert make_runner(config("x", max_seq_len=77), decoder).max_seq_len == 77
    assert make_runner(config("x"), decoder).max_seq_len == 2048


def test_devices():
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device is 'cuda:97'; torch sees"):
        choose_device("cuda:97")
