# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker process: applies step messages to a model and answers with tokens."""
