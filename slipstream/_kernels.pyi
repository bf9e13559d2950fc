# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
# backend/kernels/module.cc has the signatures.
from typing import Any

def __getattr__(name: str) -> Any: ...
