# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: where things are, and a few helpers. bash, from any directory.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${root}/.venv"
python="${venv}/bin/python"

cd "${root}"
# What is installed in the environment counts, not what another shell has set.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Half of the processors, at least two if there are two.
jobs() {
  local count
  count="$(nproc)"
  echo "$(( count > 3 ? count / 2 : count ))"
}
