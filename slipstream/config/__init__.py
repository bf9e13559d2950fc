# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The typed configuration: one schema for files, command line flags and backend parameters."""

from slipstream.config.load import ConfigError, load_config, nearest
from slipstream.config.options import Option, all_options, parameter_text, role_parameters, value_of
from slipstream.config.schema import Role, SlipstreamConfig

__all__ = [
    "ConfigError",
    "Option",
    "Role",
    "SlipstreamConfig",
    "all_options",
    "load_config",
    "nearest",
    "parameter_text",
    "role_parameters",
    "value_of",
]
