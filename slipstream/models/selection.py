# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Who computes a checkpoint: a family's decoder, or transformers over the paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from slipstream.models.checkpoint import Checkpoint
from slipstream.models.config_reader import CheckpointError, LackingError
from slipstream.models.fallback.checkpoint import FallbackCheckpoint
from slipstream.models.loader import Progress, choose_dtype, load_decoder
from slipstream.models.registry import describe, has_family
from slipstream.models.served import ServedModel, ServedSpec
from slipstream.models.tensor_files import read_json

ModelImpl = Literal["auto", "native", "transformers"]


class UnmeasuredError(CheckpointError):
    """A checkpoint that may be served and whose sizes are known only once it is loaded."""


def served_spec(
    values: Mapping[str, Any], impl: ModelImpl = "auto", *, trust_remote_code: bool = False
) -> ServedSpec:
    """The sizes of a model, from the object in a config.json; code of the checkpoint never runs.

    Raises UnmeasuredError, or CheckpointError for a model that is not served.
    """
    lacks = None
    if _is_native(values, impl):
        try:
            return describe(values)[0]
        except LackingError as error:
            lacks = _if_others_may_serve(values, impl, error)
    with _naming_both(lacks):
        if trust_remote_code and FallbackCheckpoint.needs_its_code(values):
            raise UnmeasuredError("its sizes are known only to the code that comes with it")
        checkpoint = FallbackCheckpoint(values)
    if checkpoint.spec is None:
        raise UnmeasuredError(checkpoint.why)
    return checkpoint.spec


def load_served(
    path: Path,
    dtype: str,
    device: torch.device,
    *,
    impl: ModelImpl = "auto",
    trust_remote_code: bool = False,
    dummy_seed: int | None = None,
    safetensors_only: bool = False,
    progress: Progress = lambda fraction, what: None,
) -> ServedModel:
    """Loads the checkpoint in a directory.

    dtype: a name, or ``auto`` for the checkpoint's; with ``dummy_seed`` the weights are random.
    With ``auto`` a configuration that its family lacks something for is tried with transformers;
    ``progress`` then tells what that is. Raises CheckpointError naming the field or tensor at
    fault, and the reasons of both where neither serves it.
    """
    values = read_json(path / "config.json")
    lacks = None
    if _is_native(values, impl):
        try:
            native = Checkpoint(path)
        except LackingError as error:
            lacks = _if_others_may_serve(values, impl, error)
        else:
            return load_decoder(
                native,
                choose_dtype(dtype, native.spec, device),
                device,
                dummy_seed=dummy_seed,
                safetensors_only=safetensors_only,
                progress=progress,
            )
    if lacks is not None:
        progress(0.0, f"trying transformers' own forward, for {lacks}")
    with _naming_both(lacks):
        fallback = FallbackCheckpoint(values, path if trust_remote_code else None)
        return fallback.load(
            path,
            choose_dtype(dtype, fallback, device),
            device,
            dummy_seed=dummy_seed,
            safetensors_only=safetensors_only,
            progress=progress,
        )


def _is_native(values: Mapping[str, Any], impl: ModelImpl) -> bool:
    if impl == "auto":
        # Without a model type there is nothing that transformers could look up.
        return has_family(values) or "model_type" not in values
    return impl == "native"


def _if_others_may_serve(
    values: Mapping[str, Any], impl: ModelImpl, error: LackingError
) -> LackingError:
    """The error, or raises it where transformers is not to be asked or has nothing to look up."""
    if impl == "native" or "model_type" not in values:
        raise error
    return error


@contextmanager
def _naming_both(lacks: LackingError | None) -> Iterator[None]:
    """Errors inside say first what the family lacks, which is why transformers was asked."""
    try:
        yield
    except UnmeasuredError:
        raise
    except CheckpointError as error:
        if lacks is None:
            raise
        raise CheckpointError(
            f"{lacks}; and transformers' own forward does not serve it: {error}"
        ) from error
