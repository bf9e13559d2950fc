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

HIDDEN, WIDTH, VOCAB, LAYERS = 1024, 2816, 24576, 5
LIMIT = 1.15
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": 8,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}

LOAD = """
import sys, pathlib, torch

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

baseline = status("VmRSS")
from slipstream.models.checkpoint import Checkpoint
from slipstream.models.loader import load_decoder
torch.set_num_threads(1)
decoder = load_decoder(
    Checkpoint(pathlib.Path(sys.argv[1])), getattr(torch, sys.argv[2]), torch.device("cpu")
)
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
    arguments = [str(folder(kind, stored)), str(wanted).removeprefix("torch.")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=True
    )
    baseline, peak, model = map(int, done.stdout.split())
    assert model > 200e6
    assert model <= peak - baseline <= LIMIT * model
