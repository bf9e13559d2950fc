# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Fills a decoder with a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from slipstream.models.checkpoint import Checkpoint
from slipstream.models.config_reader import CheckpointError
from slipstream.models.decoder import Decoder
from slipstream.models.spec import ArchSpec
from slipstream.models.tensor_files import TensorFiles
from slipstream.models.weights import Copy, WeightTable, plan_copies

Progress = Callable[[float, str], None]

_PROGRESS_STEP = 1 / 200  # of the bytes; models of thousands of tensors need not report each

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StoredDtype(Protocol):
    """``dtype`` is the checkpoint's own; None: not said."""

    @property
    def dtype(self) -> str | None: ...


def choose_dtype(requested: str, spec: StoredDtype, device: torch.device) -> torch.dtype:
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
    safetensors_only: bool = False,
    progress: Progress = lambda fraction, what: None,
) -> Decoder:
    """Builds the decoder and copies the checkpoint's tensors into it, as ``dtype``.

    Every tensor's name, shape and dtype is checked against its file's header before memory is
    taken. With ``dummy_seed`` the weights are random instead and no file is opened. Raises
    CheckpointError naming the file that is missing or damaged, or tensors that are missing, not
    expected, or of another shape or kind.
    """
    decoder = _outline(checkpoint.spec, dtype)
    if dummy_seed is not None:
        _allocate(decoder, device)
        _fill_randomly(decoder, dummy_seed)
        return decoder.eval()
    files = checkpoint.tensors(safetensors_only=safetensors_only)
    table = checkpoint.family.weights
    _check(_plan(decoder, files, table), files, table, decoder.spec)
    _allocate(decoder, device)
    _copy_weights(_plan(decoder, files, table), files, decoder, progress)
    return decoder.eval()


def _outline(spec: ArchSpec, dtype: torch.dtype) -> Decoder:
    """The decoder without memory for its parameters."""
    try:
        with torch.device("meta"):
            decoder = Decoder(spec, dtype)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"config.json: its sizes make no tensors: {error}") from error
    decoder.tie_weights()
    return decoder


def _allocate(decoder: Decoder, device: torch.device) -> None:
    """Gives the parameters memory, those that modules share once."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in decoder.modules():
        for name, outline in list(module.named_parameters(recurse=False)):
            if outline not in made:
                memory = torch.empty(outline.shape, dtype=outline.dtype, device=device)
                made[outline] = nn.Parameter(memory, requires_grad=False)
            module.register_parameter(name, made[outline])


def _plan(decoder: Decoder, files: TensorFiles, table: WeightTable) -> list[Copy]:
    parameters = dict(decoder.named_parameters())
    return plan_copies(table, parameters, decoder.spec.num_layers, files.has)


def _check(copies: list[Copy], files: TensorFiles, table: WeightTable, spec: ArchSpec) -> None:
    # A tied checkpoint may store the shared matrix twice; the embedding's copy is the one used.
    spare = [f"{table['lm_head']}.weight"] if spec.tie_embeddings else []
    files.check_names([name for copy in copies for name in copy.sources], optional=spare)
    for copy in copies:
        reason = copy.misfit(_outlines(files, copy), spec)
        if reason is not None:
            places = sorted({str(files.place(name)) for name in copy.sources})
            raise CheckpointError(f"{', '.join(places)}: {reason}")


def _outlines(files: TensorFiles, copy: Copy) -> tuple[torch.Tensor, ...]:
    return tuple(files.outline(name) for name in copy.sources)


def _copy_weights(
    copies: list[Copy], files: TensorFiles, decoder: Decoder, progress: Progress
) -> None:
    total = sum(copy.parameter.nbytes for copy in copies)
    converted = sum(
        copy.parameter.nbytes for copy in copies if copy.converts(_outlines(files, copy))
    )
    target = str(decoder.dtype).removeprefix("torch.")
    what = f"converting weights to {target}" if 2 * converted > total else "loading weights"
    done = told = 0
    for copy in copies:
        tensors = tuple(files.read(name) for name in copy.sources)
        for into, part in copy.pieces(tensors, decoder.spec):
            into.copy_(part)
            for name in copy.sources:
                files.release(name)
            done += into.nbytes
            if done - told >= total * _PROGRESS_STEP or done == total:
                told = done
                progress(done / total, what)


def _fill_randomly(decoder: Decoder, seed: int) -> None:
    generator = torch.Generator(device=decoder.device).manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
