# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: penalties, filters, counter-based draws and log probabilities."""
