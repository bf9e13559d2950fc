# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
# Signatures are in the docstrings of the compiled module (help(slipstream._core)).
from typing import Any

def __getattr__(name: str) -> Any: ...
