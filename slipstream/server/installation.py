# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Finding tritonserver and the backend, without importing anything of either."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import slipstream
from slipstream.errors import SlipstreamError

SERVER_VARIABLES = ("SLIPSTREAM_PYTHON", "LD_PRELOAD")  # what the server finds set
ENVIRONMENT_VARIABLE = "SLIPSTREAM_TRITONSERVER"
BACKEND_LIBRARY = Path("slipstream/libtriton_slipstream.so")
PRELOADED_LIBRARY = Path("slipstream/libslipstream_preload.so")
PYTRITON_VERSION = "0.7.0"
# tritonserver in this wheel; see doctor for what is wrong with it.
PYTRITON_SERVER_VERSION = "2.51.0"
INSTALL_HINT = f"pip install --no-deps nvidia-pytriton=={PYTRITON_VERSION}"
_WHEEL_BINARY = Path("pytriton/tritonserver/bin/tritonserver")


class InstallationError(SlipstreamError, RuntimeError):
    """Something needed to serve is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class TritonServer:
    """An installed server: the binary, where it was found, and its version if that is known."""

    binary: Path
    source: str
    version: str = ""

    @property
    def from_wheel(self) -> bool:
        return self.source.startswith("nvidia-pytriton")


def find_tritonserver(
    explicit: str = "", environment: Mapping[str, str] = os.environ
) -> TritonServer:
    """The server to use: the one named, else of the environment variable, else an installed one.

    Raises:
        InstallationError: the named one does not exist, or none is found.
    """
    for value, source in (
        (explicit, "--tritonserver"),
        (environment.get(ENVIRONMENT_VARIABLE, ""), ENVIRONMENT_VARIABLE),
    ):
        if value:
            return TritonServer(_named(value, source), source)
    for candidate in _candidates(environment):
        if os.access(candidate.binary, os.X_OK):
            return candidate
    raise InstallationError(
        f"no tritonserver: not at /opt/tritonserver, not on PATH, no nvidia-pytriton in "
        f"{sysconfig.get_path('platlib')}; run `{INSTALL_HINT}`, or name one with --tritonserver"
    )


def backend_directory() -> Path:
    """The directory to give to tritonserver, with the backend's library in it.

    Raises:
        InstallationError: this installation has none.
    """
    tried = list(dict.fromkeys(_package_directories()))
    for folder in tried:
        if (folder / "backends" / BACKEND_LIBRARY).is_file():
            return folder / "backends"
    places = ", ".join(str(folder / "backends") for folder in tried)
    raise InstallationError(
        f"no {BACKEND_LIBRARY} in {places}: install the package with `pip install .`, which "
        "builds it (needs cmake and a C++17 compiler)"
    )


def server_environment(backends: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the server process.

    This Python serves worker and tokenizer. The library beside the backend goes in front of the
    server's own calls, because its HTTP front end loses answers without it (backend/preload).
    """
    environment = dict(base)
    environment.setdefault("SLIPSTREAM_PYTHON", sys.executable)
    library = backends / PRELOADED_LIBRARY
    if library.is_file():
        others = environment.get("LD_PRELOAD", "")
        environment["LD_PRELOAD"] = f"{library}:{others}" if others else str(library)
    return environment


def pytriton_version() -> str:
    """The version of the nvidia-pytriton wheel; empty if it is not installed."""
    try:
        return importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _named(value: str, source: str) -> Path:
    path = Path(value).expanduser()
    if path.is_dir():
        path = path / "bin" / "tritonserver"
    if not os.access(path, os.X_OK) or not path.is_file():
        raise InstallationError(f"{source} is {value!r}; {path} is no executable file")
    return path


def _candidates(environment: Mapping[str, str]) -> Iterator[TritonServer]:
    yield TritonServer(Path("/opt/tritonserver/bin/tritonserver"), "/opt/tritonserver")
    on_path = shutil.which("tritonserver", path=environment.get("PATH", ""))
    if on_path:
        yield TritonServer(Path(on_path), "PATH")
    version = pytriton_version()
    for folder in dict.fromkeys(
        (sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path)
    ):
        known = PYTRITON_SERVER_VERSION if version == PYTRITON_VERSION else ""
        source = f"nvidia-pytriton {version}".strip()
        yield TritonServer(Path(folder) / _WHEEL_BINARY, source, known)


def _package_directories() -> Iterator[Path]:
    """Where the package's files can be; an editable installation has two such places."""
    for folder in slipstream.__path__:
        yield Path(folder)
    for folder in (sysconfig.get_path("platlib"), sysconfig.get_path("purelib")):
        yield Path(folder) / "slipstream"
