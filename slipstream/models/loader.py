# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Fills a decoder with a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from slipstream.models.checkpoint import Checkpoint, TensorFiles
from slipstream.models.config_reader import CheckpointError
from slipstream.models.decoder import Decoder
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightTable, plan_copies

Progress = Callable[[float, str], None]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(requested: str, spec: ArchSpec, device: torch.device) -> torch.dtype:
    """The dtype to compute in. ``auto`` takes the checkpoint's, or float32 if it names none.

    On a CPU ``auto`` turns float16 into float32: few CPUs compute in it, and float32 holds
    every value. Raises CheckpointError for a checkpoint dtype that is not supported.
    """
    name = requested if requested != "auto" else (spec.dtype or "float32")
    if name not in _DTYPES:
        raise CheckpointError(f"config.json: dtype is {name!r}; supported: {', '.join(_DTYPES)}")
    if requested == "auto" and device.type == "cpu" and name == "float16":
        name = "float32"
    return _DTYPES[name]


def load_decoder(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    dummy_seed: int | None = None,
    progress: Progress = lambda fraction, what: None,
) -> Decoder:
    """Builds the decoder and copies the checkpoint's tensors into it.

    With ``dummy_seed`` the weights are random instead and no tensor is read. Raises
    CheckpointError naming tensors that are missing, not expected or of another shape.
    """
    with torch.device("meta"):
        decoder = Decoder(checkpoint.spec, dtype)
    decoder.to_empty(device=device)
    decoder.tie_weights()
    decoder.requires_grad_(False)
    if dummy_seed is not None:
        _fill_randomly(decoder, dummy_seed)
    else:
        _copy_weights(decoder, checkpoint.tensors(), checkpoint.family.weights, progress)
    return decoder.eval()


def _copy_weights(
    decoder: Decoder, files: TensorFiles, table: WeightTable, progress: Progress
) -> None:
    spec = decoder.spec
    parameters = dict(decoder.named_parameters())
    copies = plan_copies(table, parameters, spec.num_layers, files.has)
    # A tied checkpoint may store the shared matrix twice; the embedding's copy is the one used.
    spare = [f"{table['lm_head']}.weight"] if spec.tie_embeddings else []
    files.check_names([name for copy in copies for name in copy.sources], optional=spare)
    for done, copy in enumerate(copies, start=1):
        copy.run(tuple(files.read(name) for name in copy.sources), spec)
        progress(done / len(copies), "loading weights")


def _fill_randomly(decoder: Decoder, seed: int) -> None:
    generator = torch.Generator(device=decoder.device).manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
