# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Model configurations as Triton's own ``ModelConfig`` messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from slipstream.config import Role, SlipstreamConfig, parameter_text, role_parameters
from slipstream.repository.tensors import (
    BLS_INTERFACE,
    DTYPE_CHOICES,
    INTERFACES,
    Interface,
    Tensor,
)
from slipstream.repository.wiring import STEPS

BACKEND = "slipstream"
NAMING = {
    "slipstream": {
        "tokenize": "preprocessing",
        "llm": "llm",
        "detokenize": "postprocessing",
        "pipeline": "ensemble",
    },
    "tensorrt_llm": {
        "tokenize": "preprocessing",
        "llm": "tensorrt_llm",
        "detokenize": "postprocessing",
        "pipeline": "ensemble",
        "bls": "tensorrt_llm_bls",  # role `pipeline` again
    },
}
# The parameter of role `pipeline` that names the model of role `llm`, and its name in
# `tensorrt_llm_bls`, which goes first if it is set.
LLM_NAME = "llm_model_name"
BLS_LLM_NAME = "tensorrt_llm_model_name"
# The parameter that tells `tensorrt_llm_bls` from an ensemble.
ACCUMULATE = "accumulate_tokens"
# Text fed to the detokenizer must arrive in order, which only one instance guarantees.
POSTPROCESSING_INSTANCES = 1


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What the configurations of a repository depend on, besides each role's parameters."""

    naming: str = "slipstream"
    ensemble: str = "fused"
    max_batch_size: int = 64
    decoupled: bool = True
    preprocessing_instances: int = 2
    max_queue_delay_us: int = 0
    accumulate_tokens: bool = False
    types: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: SlipstreamConfig) -> RepositorySettings:
        section = config.repository
        return cls(
            naming=section.naming,
            ensemble=section.ensemble,
            max_batch_size=section.max_batch_size,
            decoupled=section.decoupled,
            preprocessing_instances=section.preprocessing_instances,
            max_queue_delay_us=section.max_queue_delay_us,
            accumulate_tokens=section.accumulate_tokens,
            types={name: getattr(section, name) for name in DTYPE_CHOICES},
        )


def render_repository(config: SlipstreamConfig) -> dict[str, Any]:
    """The ``ModelConfig`` of every model, by model name.

    ``config`` must be resolved: model and tokenizer name what the server shall load.
    """
    settings = RepositorySettings.of(config)
    roles: tuple[Role, ...] = ("tokenize", "llm", "detokenize")
    messages = [render_role(role, settings, role_parameters(config, role)) for role in roles]
    parameters = role_parameters(config, "pipeline")
    if settings.ensemble == "fused":
        messages.append(render_role("pipeline", settings, parameters))
    else:
        messages.append(render_steps(settings))
    if "bls" in NAMING[settings.naming]:
        parameters[ACCUMULATE] = parameter_text(settings.accumulate_tokens)
        messages.append(render_bls(settings, parameters))
    return {message.name: message for message in messages}


def render_role(role: Role, settings: RepositorySettings, parameters: Mapping[str, str]) -> Any:
    """The ``ModelConfig`` of one role of the backend."""
    message = model_config_pb2.ModelConfig(
        name=NAMING[settings.naming][role],
        backend=BACKEND,
        max_batch_size=settings.max_batch_size,
    )
    _declare(message, INTERFACES[role], dict(settings.types))
    if role in ("llm", "pipeline"):
        message.model_transaction_policy.decoupled = settings.decoupled
    if role == "llm":
        count = 1
    elif role == "pipeline":
        count = settings.preprocessing_instances
    elif role == "tokenize":
        # Only on request: floods through tritonserver 2.51's batcher corrupted its heap, and rows
        # are tokenized one by one anyway (docs/performance.md).
        if settings.max_queue_delay_us > 0:
            message.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
        count = settings.preprocessing_instances
    else:
        count = POSTPROCESSING_INSTANCES
    kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    message.instance_group.add(count=count, kind=kind)
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    if role == "pipeline":
        message.parameters[LLM_NAME].string_value = NAMING[settings.naming]["llm"]
    return message


def render_bls(settings: RepositorySettings, parameters: Mapping[str, str]) -> Any:
    """The ``ModelConfig`` of `tensorrt_llm_bls`: the fused ensemble under another name.

    ``parameters`` has ``ACCUMULATE``.
    """
    message = render_role("pipeline", settings, parameters)
    message.name = NAMING[settings.naming]["bls"]
    message.ClearField("input")
    message.ClearField("output")
    _declare(message, BLS_INTERFACE, dict(settings.types))
    return message


def render_steps(settings: RepositorySettings) -> Any:
    """The ``ModelConfig`` of the ensemble as steps that Triton runs."""
    names = NAMING[settings.naming]
    message = model_config_pb2.ModelConfig(
        name=names["pipeline"], platform="ensemble", max_batch_size=settings.max_batch_size
    )
    _declare(message, INTERFACES["pipeline"], dict(settings.types))
    for step in STEPS:
        rendered = message.ensemble_scheduling.step.add(
            model_name=names[step.role], model_version=-1
        )
        for tensor, value in step.inputs:
            rendered.input_map[tensor] = value
        for tensor, value in step.outputs:
            rendered.output_map[tensor] = value
    return message


def is_role(message: Any, role: str) -> bool:
    """Whether a model is served by the backend in this role."""
    return (
        message.backend == BACKEND
        and "role" in message.parameters
        and bool(message.parameters["role"].string_value == role)
    )


def is_bls(message: Any) -> bool:
    """Whether a model is `tensorrt_llm_bls`, whatever its name."""
    return is_role(message, "pipeline") and ACCUMULATE in message.parameters


def interface_of(message: Any) -> Interface:
    """What a model that the backend serves declares; an ensemble of steps stands for one."""
    if message.backend != BACKEND:
        return INTERFACES["pipeline"]
    if is_bls(message):
        return BLS_INTERFACE
    return INTERFACES[message.parameters["role"].string_value]


def to_text(message: Any) -> str:
    """A ``ModelConfig`` as the text of ``config.pbtxt``; equal messages give equal text."""
    return str(text_format.MessageToString(message, as_utf8=True))


def parse_text(text: str) -> Any:
    """The ``ModelConfig`` in the text of a ``config.pbtxt``.

    Raises google.protobuf.text_format.ParseError.
    """
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def type_number(name: str) -> int:
    """The number of a data type that is named without ``TYPE_``."""
    return int(model_config_pb2.DataType.Value(f"TYPE_{name}"))


def _declare(message: Any, interface: Interface, types: dict[str, str]) -> None:
    for tensor in interface.inputs:
        entry = message.input.add(optional=tensor.optional, allow_ragged_batch=tensor.ragged)
        _describe(entry, tensor, types)
    for tensor in interface.outputs:
        _describe(message.output.add(), tensor, types)


def _describe(entry: Any, tensor: Tensor, types: dict[str, str]) -> None:
    entry.name = tensor.name
    entry.data_type = type_number(tensor.type_name(types))
    entry.dims.extend(tensor.dims)
    if tensor.scalar:
        entry.reshape.SetInParent()
