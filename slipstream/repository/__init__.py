# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Model repositories: generated from the typed configuration, checked, and planned for."""

from slipstream.repository.build import RepositoryError, build_repository, resolve
from slipstream.repository.findings import Finding
from slipstream.repository.lint import lint_repository

__all__ = ["Finding", "RepositoryError", "build_repository", "lint_repository", "resolve"]
