# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m slipstream.cli``."""

from slipstream.cli.app import main

main()
