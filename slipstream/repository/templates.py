# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Templates for people whose deploy scripts fill placeholders, made from the same tables.

A placeholder stands where a message field wants a number or a type, so the text is made from a
message with marker values, which then give way to the placeholders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.config import Role, SlipstreamConfig, role_parameters
from slipstream.repository.drop_in import BLS_PLACEHOLDERS, PLACEHOLDERS, QUEUE_SIZE
from slipstream.repository.render import (
    NAMING,
    RepositorySettings,
    interface_of,
    render_bls,
    render_role,
    render_steps,
    to_text,
    type_number,
)
from slipstream.repository.tensors import (
    DTYPE_CHOICES,
    ENCODER_FEATURES,
    LOGITS,
    PROMPT_TABLE,
)

_BATCH, _INSTANCES, _DELAY = 987650001, 987650002, 987650003
_QUEUE = 987650004
_TYPES = {LOGITS: 987651, ENCODER_FEATURES: 987652, PROMPT_TABLE: 987653}
_ROLES: tuple[Role, ...] = ("tokenize", "llm", "detokenize")


@dataclass(frozen=True, slots=True)
class _Scheme:
    """Names of placeholders that are not parameters, and what unfilled ones become."""

    batch: str
    decoupled: str
    instances: str
    bls_instances: str
    delay: str
    mandatory: frozenset[str]
    defaults: Mapping[str, str]


_TYPE_DEFAULTS = {name: f"TYPE_{choices[0]}" for name, choices in DTYPE_CHOICES.items()}
_SCHEMES = {
    "slipstream": _Scheme(
        batch="max_batch_size",
        decoupled="decoupled",
        instances="preprocessing_instances",
        bls_instances="",
        delay="max_queue_delay_us",
        mandatory=frozenset({"model", "tokenizer"}),
        defaults={
            "max_batch_size": "64",
            "decoupled": "true",
            "preprocessing_instances": "2",
            "max_queue_delay_us": "0",
            **_TYPE_DEFAULTS,
        },
    ),
    "tensorrt_llm": _Scheme(
        batch="triton_max_batch_size",
        decoupled="decoupled_mode",
        instances="preprocessing_instance_count",
        bls_instances="bls_instance_count",
        delay="max_queue_delay_microseconds",
        mandatory=frozenset(
            {
                "engine_dir",
                "tokenizer_dir",
                "triton_max_batch_size",
                "decoupled_mode",
            }
        ),
        defaults={
            "preprocessing_instance_count": "1",
            "bls_instance_count": "1",
            "max_queue_delay_microseconds": "0",
            "max_queue_size": "0",
            **_TYPE_DEFAULTS,
        },
    ),
}
# Placeholders that deploy scripts fill and that mean nothing here, by role.
_NO_EFFECT: dict[str, dict[str, str]] = {
    "llm": {
        "triton_backend": "this configuration names its backend",
        "max_queue_delay_microseconds": "requests are batched in flight",
    },
    "detokenize": {"postprocessing_instance_count": "text in order needs exactly one instance"},
}
# Only one of the model's own files is needed to tokenize.
_OPTIONAL_HERE = {
    "tokenize": {"engine_dir"},
    "pipeline": {"engine_dir"},
    "llm": {"tokenizer_dir"},
    "bls": {"tokenizer_dir"},
}


def render_templates(naming: str) -> dict[str, str]:
    """The text of every template of a naming scheme, by model name; the ensemble is one of steps.

    A deploy script that fills each model of a repository needs no change for it.
    """
    scheme = _SCHEMES[naming]
    settings = _marked_settings(naming)
    texts = {}
    for role in _ROLES:
        message = render_role(role, settings, _parameters(naming, role))
        if naming == "tensorrt_llm" and role == "tokenize":
            message.dynamic_batching.default_queue_policy.max_queue_size = _QUEUE
        _mark_types(message)
        texts[message.name] = _finish(to_text(message), role, naming, scheme)
    message = render_steps(settings)
    _mark_types(message, only=LOGITS)
    texts[message.name] = _finish(to_text(message), "ensemble", naming, scheme)
    if "bls" in NAMING[naming]:
        message = render_bls(settings, _filled_by(BLS_PLACEHOLDERS | QUEUE_SIZE, "pipeline"))
        _mark_types(message, only=LOGITS)
        texts[message.name] = _finish(to_text(message), "bls", naming, scheme)
    return texts


def render_fused_templates(naming: str) -> dict[str, str]:
    """What replaces the ensemble of steps: one model of role `pipeline`."""
    message = render_role("pipeline", _marked_settings(naming), _parameters(naming, "pipeline"))
    _mark_types(message, only=LOGITS)
    return {message.name: _finish(to_text(message), "pipeline", naming, _SCHEMES[naming])}


def _marked_settings(naming: str) -> RepositorySettings:
    return RepositorySettings(
        naming=naming,
        max_batch_size=_BATCH,
        decoupled=True,
        preprocessing_instances=_INSTANCES,
        max_queue_delay_us=_DELAY,
    )


def _parameters(naming: str, role: Role) -> dict[str, str]:
    if naming == "slipstream":
        keys: dict[str, str] = {key: key for key in role_parameters(SlipstreamConfig(), role)}
    else:
        keys = PLACEHOLDERS[role] | ({} if role == "detokenize" else QUEUE_SIZE)
    return _filled_by(keys, role)


def _filled_by(placeholders: Mapping[str, str], role: Role) -> dict[str, str]:
    return {key: f"${{{name}}}" for key, name in placeholders.items()} | {"role": role}


def _mark_types(message: Any, only: str = "") -> None:
    """Replaces the types that a repository may choose by markers."""
    interface = interface_of(message)
    pairs = [
        *zip(message.input, interface.inputs, strict=True),
        *zip(message.output, interface.outputs, strict=True),
    ]
    for entry, tensor in pairs:
        if tensor.dtype in _TYPES and only in ("", tensor.dtype):
            assert entry.data_type == type_number(DTYPE_CHOICES[tensor.dtype][0])
            entry.data_type = _TYPES[tensor.dtype]


def _finish(text: str, role: str, naming: str, scheme: _Scheme) -> str:
    """Puts the placeholders in, and a header that tools/fill_template.py reads."""
    markers = {
        _BATCH: scheme.batch,
        _INSTANCES: scheme.bls_instances if role == "bls" else scheme.instances,
        _DELAY: scheme.delay,
        _QUEUE: "max_queue_size",
    } | {number: name for name, number in _TYPES.items()}
    for marker, name in markers.items():
        text = text.replace(f": {marker}\n", f": ${{{name}}}\n")
    text = text.replace("decoupled: true\n", f"decoupled: ${{{scheme.decoupled}}}\n")
    return "\n".join(_header(text, role, naming, scheme)) + "\n" + text


def _header(text: str, role: str, naming: str, scheme: _Scheme) -> list[str]:
    def used(name: str) -> bool:
        return f"${{{name}}}" in text

    mandatory = sorted(
        name for name in scheme.mandatory if used(name) and name not in _OPTIONAL_HERE.get(role, ())
    )
    lines = ["# Fill with tools/fill_template.py. Generated by tools/make_templates.py."]
    if mandatory:
        lines.append("# mandatory: " + " ".join(mandatory))
    defaults = [f"{name}={value}" for name, value in scheme.defaults.items() if used(name)]
    if defaults:
        lines.append("# default: " + " ".join(defaults))
    if naming == "tensorrt_llm":
        lines += [f"# no effect: {n} ({why})" for n, why in _NO_EFFECT.get(role, {}).items()]
    return lines
