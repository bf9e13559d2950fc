# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of a model of role `pipeline` against the model that it hands its requests to."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from slipstream.config import nearest
from slipstream.repository.drop_in import BLS_NO_SUPPORT
from slipstream.repository.findings import Report
from slipstream.repository.lint_model import check_tokenizer
from slipstream.repository.render import BLS_LLM_NAME, LLM_NAME, is_bls, is_role

_DEFAULT = "llm"


def check_pipeline(
    message: Any, models: Mapping[str, Any], broken: Set[str], report: Report
) -> None:
    """Checks that the ``llm`` is there, by folder name, and takes what the pipeline takes.

    broken: models whose configuration cannot be read; nothing is said of those.
    """
    key, name = _llm_of(message)
    if not name:
        report.warning(key, f"missing; {_DEFAULT!r} applies")
        name = _DEFAULT
    if is_bls(message):
        for own, feature in BLS_NO_SUPPORT.items():
            if _parameter(message, own):
                report.error(f"parameters[{own}]", f"leave it out (no support for {feature})")
    if name in broken:
        report.warning(key, f"not checked: {name}/config.pbtxt cannot be read")
        return
    candidates = [model for model in models if is_role(models[model], "llm")]
    if name not in candidates:
        report.error(
            key, f"{name!r} is no model of role llm; the nearest is {nearest(name, candidates)!r}"
        )
        return
    llm = models[name]
    if llm.max_batch_size < message.max_batch_size:
        report.warning(
            "max_batch_size",
            f"{message.max_batch_size}, but {name} takes batches of {llm.max_batch_size}",
        )
    mine, theirs = (m.model_transaction_policy.decoupled for m in (message, llm))
    if mine != theirs:
        report.warning(
            "model_transaction_policy.decoupled",
            f"{str(mine).lower()}, but {name} has {str(theirs).lower()}",
        )
    check_tokenizer("parameters[tokenizer]", message, llm, report)


def _llm_of(message: Any) -> tuple[str, str]:
    """The key that names the ``llm``, and its value; empty: there is no such key."""
    if name := _parameter(message, BLS_LLM_NAME):
        return f"parameters[{BLS_LLM_NAME}]", name
    missing = LLM_NAME not in message.parameters
    return f"parameters[{LLM_NAME}]", "" if missing else _parameter(message, LLM_NAME) or _DEFAULT


def _parameter(message: Any, key: str) -> str:
    """As the backend reads it; empty: not set."""
    if key not in message.parameters:  # asking for the value would make one
        return ""
    return str(message.parameters[key].string_value.strip())
