# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Families of models, a file each: a configuration mapping and a table of weight names."""
