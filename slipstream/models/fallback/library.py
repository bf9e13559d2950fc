# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Configurations and models of the transformers library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback.bridge import PAGED, register
from slipstream.models.fallback.stored_weights import stored_weights
from slipstream.models.kv_scales import without_kv_scheme

_NO_READING_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"
# Kinds of layers, in configurations that list them, that read more of a sequence than its KV.
_STATEFUL_LAYERS = ("mamba", "linear_attention", "conv", "recurrent", "recurrence", "hybrid")


def knows(values: Mapping[str, Any]) -> bool:
    """Whether the library has the model type of a config.json itself."""
    from transformers import CONFIG_MAPPING  # costs import time

    return values.get("model_type") in CONFIG_MAPPING


def read_config(values: Mapping[str, Any], path: Path | None = None) -> Any:
    """The library's configuration of what a config.json says; ``path``: the checkpoint, if code
    that comes with it may run. Raises CheckpointError for what cannot be served."""
    from transformers import CONFIG_MAPPING  # costs import time

    if knows(values):
        values = without_kv_scheme(values)
    kind = values.get("model_type")
    if knows(values):
        try:
            config = CONFIG_MAPPING[str(kind)].from_dict(dict(values))
        except Exception as error:  # whatever the library's own checks raise
            raise CheckpointError(f"config.json: transformers refuses it: {error}") from error
    elif "auto_map" not in values:
        raise CheckpointError(
            f"config.json: model_type is {kind!r}, which this version of transformers does not know"
        )
    elif path is None:
        raise CheckpointError(
            f"config.json: model_type is {kind!r}, whose Python code comes with the checkpoint; "
            "it runs with trust_remote_code"
        )
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    _refuse_by_config(config, values)
    return config


def build(config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A model as the library initialises it; on the meta device it has no weights."""
    from transformers import AutoModelForCausalLM  # costs import time

    register()
    # How experts are computed by default depends on their weights' values, which meta has not.
    extra = {"experts_implementation": "batched_mm"} if device.type == "meta" else {}
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=PAGED, **_code(config), **extra
            )
    except Exception as error:  # whatever the model's code raises
        if error.args == (PAGED,):
            raise CheckpointError(
                f"{_names(config)}: chooses among attentions of its own, not by transformers' "
                "attention interface; it cannot attend to a paged KV cache"
            ) from None
        raise CheckpointError(
            f"config.json: transformers builds no model of it: {error}"
        ) from error
    model.eval().requires_grad_(False)
    return model


def load(
    config: Any,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    safetensors_only: bool = False,
) -> nn.Module:
    """The model with the checkpoint's weights. Raises CheckpointError naming tensors at fault."""
    weights = stored_weights(path, dtype, safetensors_only=safetensors_only)
    outline: Any = build(config, dtype, torch.device("meta"))
    try:
        with _in_turn():
            loaded: Any = type(outline).from_pretrained(
                None,
                config=outline.config,
                state_dict=weights,
                dtype=dtype,
                attn_implementation=PAGED,
                output_loading_info=True,
            )
    except Exception as error:  # the library's errors share no base class
        raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error
    model, found = loaded
    problems = [
        f"{what} tensors: {', '.join(sorted(map(str, names))[:8])}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("unexpected", found["unexpected_keys"]),
        )
        if names
    ]
    if problems:
        raise CheckpointError("checkpoint has " + "; ".join(problems))
    model.eval().requires_grad_(False)
    module: nn.Module = model.to(device)
    return module


@contextmanager
def _in_turn() -> Iterator[None]:
    """Makes the library read a tensor when it is its turn: by default, threads read ahead without
    bound, and what is waiting takes memory. A variable of the environment is the only switch."""
    before = os.environ.get(_NO_READING_AHEAD)
    os.environ[_NO_READING_AHEAD] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_READING_AHEAD]
        else:
            os.environ[_NO_READING_AHEAD] = before


def max_positions(config: Any) -> int:
    """The longest sequence: what the checkpoint says, stretched where its scaling means that.

    Scalings that turn with the length of the batch must not see a length where they do.
    """
    text = config.get_text_config()
    limit = int(getattr(text, "max_position_embeddings", None) or 2048)
    for rope in _ropes(text):
        kind, factor = rope.get("rope_type"), rope.get("factor") or 1.0
        original = rope.get("original_max_position_embeddings")
        original = int(getattr(text, "original_max_position_embeddings", None) or original or limit)
        if kind in ("dynamic", "longrope"):
            limit = min(limit, original)
        elif kind == "linear":
            limit = int(limit * factor)
        elif kind == "yarn":
            limit = max(limit, int(original * factor))
    return limit


def _ropes(text: Any) -> list[Mapping[str, Any]]:
    """The rotary settings of layers, one object for each kind of layer that has its own."""
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    by_kind: list[Mapping[str, Any]] = [v for v in rope.values() if isinstance(v, dict)]
    return by_kind or [rope]


def _refuse_by_config(config: Any, values: Mapping[str, Any]) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING  # costs import time

    names = values.get("architectures") or []
    if values.get("quantization_config") is not None:
        raise CheckpointError("config.json: quantization_config is there; supported: absent")
    if config.is_encoder_decoder:
        raise CheckpointError(f"{_names(config)}: has an encoder; only decoders are served")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if names and model.__name__ not in names:
            raise CheckpointError(
                f"config.json: architectures: {', '.join(names)} is not the causal language model "
                f"of {config.model_type}, which is {model.__name__}"
            )
        if getattr(model, "_is_stateful", False):
            raise CheckpointError(
                f"{_names(config)}: has layers with a state (state-space or linear attention); "
                "only attention over a KV cache is served"
            )
    elif "auto_map" not in values:
        raise CheckpointError(
            f"config.json: model_type {config.model_type} has no causal language model in "
            "transformers"
        )
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    stateful = sorted({kind for kind in kinds if kind in _STATEFUL_LAYERS})
    if stateful:
        raise CheckpointError(
            f"{_names(config)}: layer_types has {', '.join(stateful)}; only attention over a KV "
            "cache is served"
        )


def _code(config: Any) -> dict[str, Any]:
    # Only a configuration that read_config got from the checkpoint's code leads to its models.
    return {"trust_remote_code": not type(config).__module__.startswith("transformers.")}


def _names(config: Any) -> str:
    return ", ".join(config.architectures or []) or str(config.model_type)
