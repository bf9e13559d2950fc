# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the executor tells a worker to load."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slipstream.link import VERSION

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class ConfigError(ValueError):
    """A CONFIG frame that cannot be honoured; the message names the field, value and limit."""


class WorkerConfig(BaseModel):
    """The CONFIG frame. Sizes are in bytes or tokens as named; 0 means not given."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: str
    frame_version: int
    model: str = Field(min_length=1)
    tokenizer: str = ""  # whose token table HELLO has; empty: the model's
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    tokens_per_block: int = Field(default=32, ge=1, le=1024)
    max_num_seqs: int = Field(default=0, ge=0, le=65536)  # 0: as suits the device
    max_num_tokens: int = Field(default=0, ge=0)  # likewise
    max_seq_len: int = Field(default=0, ge=0)
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    kv_cache_bytes: int = Field(default=0, ge=0)
    kv_cache_tokens: int = Field(default=0, ge=0)
    kv_cache_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    trust_remote_code: bool = False
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    model_impl: Literal["auto", "native", "transformers"] = "auto"
    num_threads: int = Field(default=0, ge=0, le=4096)
    cuda_graphs: bool = True
    attention_backend: Literal["auto", "triton", "flashinfer", "sdpa"] = "auto"
    deterministic: bool = False
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    revision: str | None = None
    token_table: bool = True  # in HELLO; an executor that restarts a worker has it already
    rank: int = Field(default=0, ge=0)
    world_size: int = Field(default=1, ge=1)

    @field_validator("frame_version")
    @classmethod
    def _same_frames(cls, value: int) -> int:
        if value != VERSION:
            raise ValueError(f"the executor speaks frames {value}, this worker {VERSION}")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _one_rank(self) -> WorkerConfig:
        if self.rank >= self.world_size:
            raise ValueError(f"rank is {self.rank}, must be below world_size {self.world_size}")
        if self.world_size != 1:
            raise ValueError(f"world_size is {self.world_size}; this worker supports 1")
        return self

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> WorkerConfig:
        """Checks a CONFIG map. Raises ConfigError listing every fault."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            faults = "; ".join(_describe(fault) for fault in error.errors())
            raise ConfigError(f"worker configuration: {faults}") from None


def _describe(fault: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, WorkerConfig.model_fields, n=1, cutoff=0.0)
        return f"unknown key {name!r}, the nearest is {near[0]!r}"
    if fault["type"] == "missing":
        return f"{name} is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{name} is {fault['input']!r}: {message}" if name else message
