# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model family: data that turns checkpoints into decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slipstream.models.config_reader import ConfigReader
from slipstream.models.spec import ArchSpec
from slipstream.models.weights import WeightTable


@dataclass(frozen=True, slots=True)
class Family:
    """How to read a family's configuration and what its tensors are called.

    ``arch_spec`` maps config.json and the architecture's name to an ArchSpec, and raises
    CheckpointError naming the field that is missing, of the wrong type or not supported.
    ``ignored_tensors`` are name endings of checkpoint tensors that carry no weights. ``prefix``:
    some checkpoints leave it out of every name.
    """

    name: str
    architectures: tuple[str, ...]
    arch_spec: Callable[[ConfigReader, str], ArchSpec]
    weights: WeightTable
    ignored_tensors: tuple[str, ...] = ()
    prefix: str = ""
