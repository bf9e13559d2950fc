# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of a model's ``instance_group``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.config import Role
from slipstream.repository.findings import Report
from slipstream.repository.render import POSTPROCESSING_INSTANCES

# What a server takes, or takes for TensorRT, and the backend refuses.
_UNSERVED = ("passive", "host_policy", "rate_limiter", "secondary_devices", "profile")


def check_instances(
    role: Role, message: Any, parameters: Mapping[str, str], report: Report
) -> None:
    """Kinds, places and number of instances; ``parameters`` are the model's."""
    groups = message.instance_group
    if not groups:
        report.warning("instance_group", "missing; expected one of kind KIND_CPU")
        return
    for index, group in enumerate(groups):
        key = f"instance_group[{index}]"
        kind = type(group).Kind.Name(group.kind)
        for field, _ in group.ListFields():
            if field.name in _UNSERVED:
                report.error(f"{key}.{field.name}", "is not supported, must be left out")
        if role == "llm" and kind == "KIND_GPU":
            _check_gpus(key, list(group.gpus), parameters, report)
        elif kind != "KIND_CPU":
            report.warning(f"{key}.kind", f"must be KIND_CPU: {_chooser(role)}")
        if group.count < 1:
            report.warning(f"{key}.count", f"{group.count}: must be at least 1")
    count = sum(group.count for group in groups)
    if role == "detokenize" and count > POSTPROCESSING_INSTANCES:
        report.error(
            "instance_group.count",
            f"{count}: must be {POSTPROCESSING_INSTANCES}, text would get out of order",
        )
    if role == "llm" and count > 1:
        report.error("instance_group.count", f"{count}: must be 1, one executor per model")


def _chooser(role: Role) -> str:
    if role == "llm":
        return "the parameter device chooses, or KIND_GPU with one of gpus"
    return f"role {role} uses no GPU"


def _check_gpus(key: str, gpus: list[int], parameters: Mapping[str, str], report: Report) -> None:
    if not gpus:
        report.warning(
            f"{key}.gpus", "not set: the server lists all GPUs, which must be 1; name it"
        )
        return
    if len(gpus) > 1:
        report.error(f"{key}.gpus", f"{gpus}: must be 1, one executor per model")
        return
    means = f"cuda:{gpus[0]}"
    for name, prefix in (("device", ""), ("gpu_device_ids", "cuda:")):
        text = parameters.get(name, "").strip()
        if text and prefix + text not in ("auto", "cuda", means):
            report.error(
                f"{key}.gpus", f"{gpus} means {means}, but parameter {name} means '{prefix}{text}'"
            )
