# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every format of weights loads alike; damaged and mislabelled files are refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.models import loader
from slipstream.models.checkpoint import Checkpoint
from slipstream.models.config_reader import CheckpointError
from slipstream.models.loader import load_decoder
from slipstream.repository.checkpoint import read_checkpoint

CPU = torch.device("cpu")
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def load(path, dtype=torch.float32, **options):
    return load_decoder(Checkpoint(path), dtype, CPU, **options)


def stored_in(file):
    """Copies: what load_file returns are views of the file, which the tests overwrite."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def same(decoder, other):
    ours, theirs = dict(decoder.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy of a small checkpoint, one safetensors file, to be damaged."""
    path = tmp_path / "model"
    shutil.copytree(checkpoint("gqa").path, path)
    return path


@pytest.fixture(autouse=True)
def no_memory_before_an_error(request, monkeypatch):
    """What is refused is refused before the parameters have memory."""
    allocated = []
    allocate = loader._allocate
    monkeypatch.setattr(loader, "_allocate", lambda *how: (allocated.append(1), allocate(*how)))
    yield
    if "refused" in request.node.name:
        assert not allocated


def write_bin(path: Path, tensors: dict | None = None, shards: int = 1) -> dict[str, str]:
    """Stores a checkpoint's tensors with torch.save instead; returns the index's weight_map."""
    if tensors is None:
        tensors = stored_in(path / "model.safetensors")
    (path / "model.safetensors").unlink(missing_ok=True)
    if shards == 1:
        torch.save(tensors, path / "pytorch_model.bin")
        return {}
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[number::shards])
        torch.save(part, path / file)
        weight_map.update(dict.fromkeys(part, file))
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def write_shards(path: Path) -> tuple[Path, Path, Path]:
    """Splits the safetensors file in two; returns both and the index."""
    tensors = stored_in(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    files = (path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors")
    weight_map = {}
    for number, file in enumerate(files):
        part = dict(sorted(tensors.items())[number::2])
        save_file(part, file)
        weight_map.update(dict.fromkeys(part, file.name))
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return *files, index


def edit_header(file: Path, edit) -> None:
    """Rewrites a safetensors header, the data left as it is."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = edit(header)
    text = json.dumps(header).encode() if text is None else text
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# Formats.


@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_load_as_safetensors_do(model, shards):
    expected = load(model)
    parameters = read_checkpoint(str(model)).parameters
    write_bin(model, shards=shards)
    assert same(load(model), expected)
    assert read_checkpoint(str(model)).parameters == parameters
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.safetensors.i"):
        load(model, safetensors_only=True)


def test_safetensors_are_preferred(model):
    expected = load(model)
    torch.save({}, model / "pytorch_model.bin")
    assert same(load(model), expected)


def test_views_and_shared_storages_of_torch_files(model):
    """Transposed, strided and offset views, and two names for one storage."""
    tensors = stored_in(model / "model.safetensors")
    expected = load(model)
    tensors[EMBEDDING] = tensors[EMBEDDING].t().contiguous().t()
    tensors[NORM] = torch.stack((torch.zeros(64), tensors[NORM]), dim=1)[:, 1]
    both = torch.stack([tensors[f"model.layers.{n}.input_layernorm.weight"] for n in (0, 1)])
    for n in (0, 1):
        tensors[f"model.layers.{n}.input_layernorm.weight"] = both[n]
    write_bin(model, tensors)
    assert same(load(model), expected)


def test_a_tied_matrix_is_one_in_every_format(checkpoint, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(checkpoint("mha_tied").path, path)
    expected = load(path)
    tensors = stored_in(path / "model.safetensors")
    write_bin(path, {**tensors, "lm_head.weight": tensors[EMBEDDING]})
    decoder = load(path)
    assert same(decoder, expected)
    assert decoder.lm_head.weight is decoder.embedding.weight
    assert decoder.lm_head.weight.data_ptr() == decoder.embedding.weight.data_ptr()


def test_fused_and_split_projections_make_the_same_decoder(checkpoint, model):
    """As Phi-3 stores them, against the same values as Llama stores them."""
    expected = load(model)
    tensors = stored_in(model / "model.safetensors")
    for n in range(3):
        attention, mlp = f"model.layers.{n}.self_attn.", f"model.layers.{n}.mlp."
        tensors[attention + "qkv_proj.weight"] = torch.cat(
            [tensors.pop(f"{attention}{name}_proj.weight") for name in "qkv"]
        )
        tensors[mlp + "gate_up_proj.weight"] = torch.cat(
            [tensors.pop(f"{mlp}{name}_proj.weight") for name in ("gate", "up")]
        )
    save_file(tensors, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["Phi3ForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    assert same(load(model), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_conversion_is_that_of_torch_and_is_announced(model, stored, wanted):
    tensors = {n: t.to(stored) for n, t in stored_in(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors")
    told = set()
    decoder = load(model, wanted, progress=lambda fraction, what: told.add(what))
    assert torch.equal(decoder.embedding.weight, tensors[EMBEDDING].to(wanted))
    assert decoder.lm_head.weight.dtype is wanted
    name = str(wanted).removeprefix("torch.")
    assert told == {"loading weights" if stored is wanted else f"converting weights to {name}"}


def test_large_tensors_are_copied_in_pieces_and_progress_follows_the_bytes(model, monkeypatch):
    expected = load(model)
    monkeypatch.setattr("slipstream.models.weights._PIECE_BYTES", 1000)
    seen = []
    decoder = load(model, progress=lambda fraction, what: seen.append(fraction))
    assert same(decoder, expected)
    steps = [after - before for before, after in zip([0.0, *seen], seen, strict=False)]
    assert seen[-1] == 1.0
    assert max(steps) < 1 / 200 + 1000 / decoder.weight_bytes
    assert min(steps[:-1]) >= 1 / 200


# Damage. Each changes a good checkpoint and returns the file and the words of the error.


def cut_in_the_data(path):
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    last = max(load_order(file))[1]
    return file, f"cut off: {last} ends at byte"


def load_order(file):
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return [(e["data_offsets"], n) for n, e in header.items() if n != "__metadata__"]


def cut_in_the_header(path):
    file = path / "model.safetensors"
    os.truncate(file, 200)
    return file, "and the file has 200: it is cut off, or not a safetensors file"


def cut_to_nothing(path):
    file = path / "model.safetensors"
    os.truncate(file, 0)
    return file, "0 bytes, too few for a safetensors file"


def longer_than_its_tensors(path):
    file = path / "model.safetensors"
    with file.open("ab") as stream:
        stream.write(b"12345")
    return file, "5 bytes follow the last tensor"


def torch_file_called_safetensors(path):
    file = path / "model.safetensors"
    torch.save(stored_in(file), file)
    return file, "its header should take"


def lfs_pointer(path):
    file = path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return file, "a Git LFS pointer instead of the file itself"


def header_damage(edit, words):
    def damage(path):
        edit_header(path / "model.safetensors", edit)
        return path / "model.safetensors", words

    return damage


def set_entry(**values):
    return lambda header: header[NORM].update(values)


def doubled_entry(header):
    text = json.dumps(header)
    return (text[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}').encode()


def wrong_tensor(tensor, words):
    def damage(path):
        file = path / "model.safetensors"
        save_file({**stored_in(file), NORM: tensor}, file)
        return file, words

    return damage


def wrong_tensor_in_a_torch_file(path):
    tensors = stored_in(path / "model.safetensors")
    weight_map = write_bin(path, {**tensors, NORM: torch.zeros(65)}, shards=2)
    return path / weight_map[NORM], f"tensors do not fit config.json: {NORM} (65,) for norm.weight"


def missing_shard(path):
    first, _, index = write_shards(path)
    first.unlink()
    return index, f"files are missing: {first.name}"


def tensor_missing_from_its_shard(path):
    _, second, index = write_shards(path)
    save_file({n: t for n, t in stored_in(second).items() if n != EMBEDDING}, second)
    return second, f"lacks {EMBEDDING}, which {index.name} says it holds"


def tensor_in_two_shards(path):
    first, second, _ = write_shards(path)
    name, tensor = next(iter(stored_in(first).items()))
    save_file({**stored_in(second), name: tensor}, second)
    return second, f"holds {name}, and so does {first}"


def index_damage(text, words):
    def damage(path):
        index = write_shards(path)[2]
        index.write_text(text)
        return index, words

    return damage


def bin_damage(content, words):
    def damage(path):
        write_bin(path)
        file = path / "pytorch_model.bin"
        content(file)
        return file, words

    return damage


def compress(file):
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def save_legacy(file):
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)


DAMAGES = {
    "cut_in_the_data": cut_in_the_data,
    "cut_in_the_header": cut_in_the_header,
    "cut_to_nothing": cut_to_nothing,
    "too_long": longer_than_its_tensors,
    "torch_file_called_safetensors": torch_file_called_safetensors,
    "lfs_pointer": lfs_pointer,
    "header_not_json": header_damage(lambda header: b"{'a'", "the header is not JSON"),
    "header_too_deep": header_damage(lambda header: b"[" * 99999, "the header is not JSON"),
    "header_not_an_object": header_damage(lambda header: b"[1]", "the header holds list"),
    "entry_twice": header_damage(doubled_entry, f"the header lists {NORM} twice"),
    "entry_without_shape": header_damage(set_entry(shape=None), f"{NORM}: shape is None"),
    "entry_negative": header_damage(set_entry(shape=[-64]), f"{NORM}: shape is [-64]"),
    "entry_overflows": header_damage(set_entry(shape=[1 << 64]), f"{NORM}: shape is [1844"),
    "entry_too_large": header_damage(
        set_entry(shape=[1 << 40]), f"{NORM}: F32 [1099511627776] takes 4398046511104 bytes"
    ),
    "entry_overlaps": header_damage(set_entry(data_offsets=[0, 256]), "begins at byte"),
    "entry_dtype": header_damage(set_entry(dtype="F4"), f"{NORM}: dtype is 'F4'; supported"),
    "wrong_shape": wrong_tensor(
        torch.zeros(63), f"tensors do not fit config.json: {NORM} (63,) for norm.weight, which is"
    ),
    "wrong_rank": wrong_tensor(torch.zeros(64, 1), f"{NORM} (64, 1) for norm.weight"),
    "wrong_dtype": wrong_tensor(
        torch.zeros(64, dtype=torch.int32), f"{NORM} holds int32, expected float32 or bfloat16"
    ),
    "float8_without_scales": wrong_tensor(
        torch.zeros(64, dtype=torch.float8_e4m3fn), f"{NORM} holds float8_e4m3fn, expected"
    ),
    "wrong_shape_in_a_torch_file": wrong_tensor_in_a_torch_file,
    "shard_missing": missing_shard,
    "tensor_missing_from_its_shard": tensor_missing_from_its_shard,
    "tensor_in_two_shards": tensor_in_two_shards,
    "index_not_json": index_damage("{", "Expecting property name"),
    "index_not_an_object": index_damage("[]", "holds list, expected an object"),
    "index_without_map": index_damage("{}", "weight_map is missing"),
    "index_leads_away": index_damage(
        '{"weight_map": {"a": "../b.safetensors"}}',
        "weight_map.a is '../b.safetensors', expected the name of a file beside it",
    ),
    "index_names_a_number": index_damage('{"weight_map": {"a": 3}}', "weight_map.a is 3, expected"),
    "bin_not_torch": bin_damage(lambda file: file.write_bytes(b"x" * 999), "not a file that torch"),
    "bin_empty": bin_damage(lambda file: os.truncate(file, 0), "not a file that torch.save writes"),
    "bin_cut": bin_damage(
        lambda file: os.truncate(file, file.stat().st_size // 2), "cut off or damaged"
    ),
    "bin_compressed": bin_damage(compress, "is compressed and cannot be memory-mapped"),
    "bin_legacy": bin_damage(save_legacy, "not a file that torch.save writes since version 1.6"),
    "bin_one_tensor": bin_damage(
        lambda file: torch.save(torch.zeros(3), file), "holds Tensor, expected tensors by name"
    ),
    "bin_of_a_training_run": bin_damage(
        lambda file: torch.save({"epoch": 3}, file), "epoch is a int, expected a tensor"
    ),
    "bin_sparse": bin_damage(
        lambda file: torch.save({NORM: torch.eye(64).to_sparse()}, file), "is not a plain tensor"
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_file_and_tensor(model, name):
    file, words = DAMAGES[name](model)
    with pytest.raises(CheckpointError) as caught:
        load(model)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500 + 2 * len(str(file))


class Payload:
    """Pickles to a call of what it is given."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def plain_pickle(file, payload):
    file.write_bytes(pickle.dumps({NORM: payload}))


def pickle_in_an_archive(file, payload):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({NORM: payload}, protocol=2))
        archive.writestr("archive/version", "3\n")


def saved_by_torch(file, payload):
    torch.save({NORM: torch.zeros(64), "x": payload}, file)


@pytest.mark.parametrize("write", [plain_pickle, pickle_in_an_archive, saved_by_torch])
@pytest.mark.parametrize("call", ["system", "eval", "open"])
def test_a_pickle_that_runs_code_is_refused_unread(model, tmp_path, write, call):
    trace = tmp_path / "trace"
    function, argument = {
        "system": (os.system, f"touch {trace}"),
        "eval": (eval, f"open({str(trace)!r}, 'w')"),
        "open": (open, (str(trace), "w")),
    }[call]
    arguments = argument if isinstance(argument, tuple) else (argument,)
    write_bin(model)
    file = model / "pytorch_model.bin"
    write(file, Payload(function, *arguments))
    with pytest.raises(CheckpointError) as caught:
        load(model)
    assert str(caught.value).startswith(f"{file}: ")
    assert not trace.exists()
    if write is saved_by_torch:
        assert "torch refuses to read weights from it: " in str(caught.value)
        assert function.__name__ in str(caught.value)
        assert "arbitrary code execution" not in str(caught.value)  # torch's advice to go on
        torch.load(file, weights_only=False)  # the payload does work where it is allowed to
        assert trace.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[1, 2]", "holds list, expected an object"),
        ("[" * 99999, "recursion"),
        (b"\xff\xfe", "codec can't decode"),
        (None, "No such file or directory"),
    ],
)
def test_a_broken_configuration_is_refused_by_file(model, text, words):
    file = model / "config.json"
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(model)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; supported: a number from 1"),
        ("hidden_size", 1 << 62, "hidden_size is 4611686018427387904; supported: a number from 1"),
        ("vocab_size", (1 << 31) - 1, f"{EMBEDDING} (211, 64) for embedding.weight"),
        ("intermediate_size", 1 << 30, "mlp.gate_proj.weight (96, 64)"),
    ],
)
def test_absurd_sizes_are_refused_at_once(model, field, value, words):
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(CheckpointError) as caught:
        load(model)
    assert words in str(caught.value)
