# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.config import SlipstreamConfig, load_config
from slipstream.repository import build_repository, resolve

ROOT = Path(__file__).resolve().parents[3]

# One layer of everything: 2 layers, 2 KV heads of 8, 1,000 + 24 parameters.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
SHAPES = {"model.embed_tokens.weight": [100, 10], "model.norm.weight": [24]}


def write_safetensors(file: Path, shapes: dict[str, list[int]]) -> None:
    """A file of zeros, bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        count = 1
        for length in shape:
            count *= length
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + 2 * count],
        }
        offset += 2 * count
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory that looks like a checkpoint, of 1,024 parameters."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(folder / "model.safetensors", SHAPES)
    return folder


@pytest.fixture
def configure(checkpoint: Path) -> Callable[..., SlipstreamConfig]:
    """Makes a resolved configuration of the checkpoint."""

    def make(**options: Any) -> SlipstreamConfig:
        return resolve(load_config(None, {"model": str(checkpoint), **options}))

    return make


@pytest.fixture
def repository(tmp_path: Path, configure: Callable[..., SlipstreamConfig]) -> Path:
    """A generated repository."""
    folder = tmp_path / "repository"
    build_repository(configure(), folder)
    return folder
