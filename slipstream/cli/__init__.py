# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``slipstream``."""

from slipstream.cli.app import main

__all__ = ["main"]
