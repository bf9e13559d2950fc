# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading takes the memory of the model and little more.

Counted is what the kernel counts: the high-water mark of a process's resident set (VmHWM), which is
anonymous memory (RssAnon, the decoder's parameters) and mapped pages of files (RssFile, what is
being read of the checkpoint) together. Pages of a clean file map could be had back under pressure,
but tools that watch a process and limits that kill it may not make the difference, so they count in
full. The page cache behind them does not: it belongs to no process.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, WIDTH, VOCAB, LAYERS = 1024, 2816, 24576, 5
LIMIT = 1.15
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}

STATUS = """
import sys, pathlib, torch
torch.set_num_threads(1)

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
"""

LOAD = f"""{STATUS}
baseline = status("VmRSS")
from slipstream.models.checkpoint import Checkpoint
from slipstream.models.loader import load_decoder
decoder = load_decoder(
    Checkpoint(pathlib.Path(sys.argv[1])), getattr(torch, sys.argv[2]), torch.device("cpu")
)
print(baseline, status("VmHWM"), decoder.weight_bytes)
"""


# The library and the code that its forward runs are not the model's: a tiny one brings them in.
LOAD_FALLBACK = f"""{STATUS}
from slipstream.models.selection import load_served
def load(path):
    return load_served(pathlib.Path(path), sys.argv[2], torch.device("cpu"), impl="transformers")

load(sys.argv[3])
baseline = status("VmRSS")
decoder = load(sys.argv[1])
print(baseline, status("VmHWM"), decoder.weight_bytes)
"""


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj"] = (HIDDEN, HIDDEN)
        shapes[layer + "mlp.gate_proj"] = shapes[layer + "mlp.up_proj"] = (WIDTH, HIDDEN)
        shapes[layer + "mlp.down_proj"] = (HIDDEN, WIDTH)
        shapes[layer + "input_layernorm"] = (HIDDEN,)
        shapes[layer + "post_attention_layernorm"] = (HIDDEN,)
    shapes["lm_head"] = (VOCAB, HIDDEN)
    values = torch.randn(VOCAB * HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    # save_file does not take two tensors that share memory.
    return {f"{name}.weight": values[: math.prod(s)].view(s).clone() for name, s in shapes.items()}


def save_shards(path: Path, all_tensors: dict[str, torch.Tensor]) -> None:
    weight_map = {}
    for number in range(4):
        file = f"model-{number}.safetensors"
        names = list(all_tensors)[number::4]
        save_file({name: all_tensors[name] for name in names}, path / file)
        weight_map.update(dict.fromkeys(names, file))
    index = json.dumps({"weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes a checkpoint of some hundred MB in a format, on first use."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def make(kind: str, dtype: torch.dtype) -> Path:
        if (kind, dtype) not in made:
            path = made[kind, dtype] = tmp_path_factory.mktemp(kind)
            (path / "config.json").write_text(json.dumps(CONFIG))
            if kind == "bin":
                torch.save(tensors(dtype), path / "pytorch_model.bin")
            elif kind == "sharded":
                save_shards(path, tensors(dtype))
            else:
                save_file(tensors(dtype), path / "model.safetensors")
        return made[kind, dtype]

    yield make
    for path in made.values():
        for file in path.iterdir():
            file.unlink()  # pytest would keep them for three runs


@pytest.mark.parametrize(
    ("kind", "stored", "wanted"),
    [
        ("safetensors", torch.bfloat16, torch.bfloat16),
        ("safetensors", torch.bfloat16, torch.float32),
        ("bin", torch.bfloat16, torch.float32),
        ("bin", torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_peak_is_the_model_and_little_more(folder, kind, stored, wanted):
    check_peak(LOAD, folder(kind, stored), wanted)


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin"])
def test_so_it_is_on_transformers_own_forward(folder, kind, wanted, tmp_path):
    tiny = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 256, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**CONFIG | tiny)).save_pretrained(tmp_path)
    check_peak(LOAD_FALLBACK, folder(kind, torch.bfloat16), wanted, tmp_path)


def check_peak(script: str, path: Path, wanted: torch.dtype, *more: Path) -> None:
    arguments = [str(path), str(wanted).removeprefix("torch."), *map(str, more)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    baseline, peak, model = map(int, done.stdout.split())
    assert model > 200e6
    assert model <= peak - baseline <= LIMIT * model
