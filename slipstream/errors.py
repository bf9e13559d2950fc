# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions of the Python API.

::

    SlipstreamError
    ├── RequestError        a request was wrong (also a ValueError)
    ├── UnavailableError    no room or no worker now; the same request may succeed later
    └── GenerationError     an accepted request ended with an error
"""

from __future__ import annotations


class SlipstreamError(Exception):
    """Base of every error that Slipstream raises on purpose."""


class RequestError(SlipstreamError, ValueError):
    """The request cannot be served as asked; the message names the field, value and limit."""


class UnavailableError(SlipstreamError):
    """The queue is full, the executor is draining, or its worker is gone."""


class GenerationError(SlipstreamError):
    """An accepted request ended with an error."""
