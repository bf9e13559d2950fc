# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks of a model of role `pipeline` against the model that it hands its requests to."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from slipstream.config import nearest
from slipstream.repository.findings import Report
from slipstream.repository.lint_model import check_tokenizer
from slipstream.repository.render import LLM_NAME, is_role

_DEFAULT = "llm"


def check_pipeline(
    message: Any, models: Mapping[str, Any], broken: Set[str], report: Report
) -> None:
    """Checks that the ``llm`` is there, by folder name, and takes what the pipeline takes.

    broken: models whose configuration cannot be read; nothing is said of those.
    """
    key = f"parameters[{LLM_NAME}]"
    name = _DEFAULT
    if LLM_NAME in message.parameters:
        name = message.parameters[LLM_NAME].string_value.strip() or _DEFAULT
    else:
        report.warning(key, f"missing; {_DEFAULT!r} applies")
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
