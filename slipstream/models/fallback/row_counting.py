# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds forwards that number the tokens of a row by themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from slipstream.models.config_reader import CheckpointError

# The library's sorting of tokens by expert counts rows to find them again, not to place them.
_HARMLESS = "integrations"


class RowCounting(TorchFunctionMode):
    """While active, ``torch.arange`` over as many numbers as a row has tokens is refused.

    A row holds tokens of several sequences, so such numbers are not positions. Comparing results
    does not find this: Llama 4 scales queries by them only from position 8192 on.
    """

    def __init__(self, name: str, num_tokens: int) -> None:
        """name: of the model, for the message."""
        super().__init__()
        self._name = name
        self._num_tokens = num_tokens

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Raises CheckpointError naming the function that counts."""
        result = func(*args, **(kwargs or {}))
        if func is torch.arange and result.shape == (self._num_tokens,):
            code = sys._getframe(1).f_code
            file = Path(code.co_filename)
            if file.parent.name != _HARMLESS:
                raise CheckpointError(
                    f"{self._name}: {code.co_name} in {file.name} counts the tokens of a row, "
                    "where a row holds tokens of several sequences"
                )
        return result
