# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Fills a decoder with a checkpoint's weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch

from slipstream.models.checkpoint import Checkpoint, TensorFiles
from slipstream.models.config_reader import CheckpointError
from slipstream.models.decoder import Decoder
from slipstream.models.spec import ArchSpec, WeightRule

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
        rules = checkpoint.family.weight_rules(checkpoint.spec)
        _copy_weights(decoder, checkpoint.tensors(), rules, progress)
    return decoder.eval()


def _copy_weights(
    decoder: Decoder, files: TensorFiles, rules: list[WeightRule], progress: Progress
) -> None:
    sources = _sources_by_target(rules, decoder.spec.num_layers)
    names = [name for group in sources.values() for name in group]
    # A tied checkpoint may store the shared matrix twice; the embedding's copy is the one used.
    files.check_names(names, optional=["lm_head.weight"] if decoder.spec.tie_embeddings else [])
    parameters = dict(decoder.named_parameters())
    done = 0
    for target, group in sources.items():
        _copy_stacked(parameters[target], target, [(name, files.read(name)) for name in group])
        done += len(group)
        progress(done / len(names), "loading weights")


def _sources_by_target(rules: list[WeightRule], num_layers: int) -> dict[str, list[str]]:
    sources: dict[str, list[str]] = defaultdict(list)
    for layer in range(num_layers):
        for rule in rules:
            if rule.per_layer or layer == 0:
                target = rule.target.format(layer=layer)
                sources[target].append(rule.source.format(layer=layer))
    return sources


def _copy_stacked(
    parameter: torch.Tensor, target: str, tensors: list[tuple[str, torch.Tensor]]
) -> None:
    rows = sum(tensor.shape[0] for _, tensor in tensors)
    fits = all(tensor.shape[1:] == parameter.shape[1:] for _, tensor in tensors)
    if not fits or rows != parameter.shape[0]:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors)
        raise CheckpointError(
            f"checkpoint tensors do not fit config.json: {shapes} for {target}, which is "
            f"{tuple(parameter.shape)}"
        )
    start = 0
    for _, tensor in tensors:
        parameter[start : start + tensor.shape[0]].copy_(tensor)
        start += tensor.shape[0]


def _fill_randomly(decoder: Decoder, seed: int) -> None:
    generator = torch.Generator(device=decoder.device).manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
