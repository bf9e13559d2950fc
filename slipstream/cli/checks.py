# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``slipstream doctor`` looks at: each check is a function that returns what it found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slipstream.repository.machine import VISIBLE_DEVICES, free_host_memory, list_gpus, visible_gpus
from slipstream.repository.plan import size
from slipstream.server.installation import (
    INSTALL_HINT,
    PYTRITON_VERSION,
    InstallationError,
    backend_directory,
    find_tritonserver,
    pytriton_version,
)

State = Literal["ok", "warning", "missing"]

PRODUCTION_IMAGE = "nvcr.io/nvidia/tritonserver:25.07-py3"
_MIN_OPEN_FILES = 4096
_MIN_SHARED_MEMORY = 64 << 20
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "tritonclient", "numpy")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` says what to do about it."""

    state: State
    name: str
    found: str
    fix: str = ""


def check_python() -> Check:
    return Check("ok", "Python", f"{platform.python_version()} at {sys.executable}")


def check_packages() -> Check:
    found, absent = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        fix = f"pip install {' '.join(absent)}"
        return Check("missing", "Python packages", f"without {', '.join(absent)}", fix)
    return Check("ok", "Python packages", ", ".join(found))


def check_core() -> Check:
    if importlib.util.find_spec("slipstream._core") is None:
        fix = "pip install . (needs cmake and a C++17 compiler)"
        return Check("missing", "slipstream._core", "not built", fix)
    return Check("ok", "slipstream._core", "built")


def check_backend() -> Check:
    try:
        return Check("ok", "Triton backend", str(backend_directory()))
    except InstallationError as error:
        return Check("missing", "Triton backend", "not built", str(error))


def check_server() -> Check:
    try:
        server = find_tritonserver()
    except InstallationError as error:
        return Check("missing", "tritonserver", "not found", str(error))
    version = f", version {server.version}" if server.version else ""
    return Check("ok", "tritonserver", f"{server.binary} ({server.source}{version})")


def check_server_bugs() -> Check:
    """Faults of the server in the wheel, which this package cannot mend."""
    name = "known server bugs"
    try:
        server = find_tritonserver()
    except InstallationError:
        return Check("ok", name, "no server")
    if not server.from_wheel:
        return Check("ok", name, "not the server of the nvidia-pytriton wheel")
    found = (
        f"{server.version or 'this server'} lacks the security fixes of August 2025 "
        "(CVE-2025-23310, -23311, -23319, -23320, -23334); it can crash when many gRPC streams are "
        "cancelled at high token rates, and lose the tail of HTTP streams under flood"
    )
    return Check(
        "warning",
        name,
        found,
        f"for development and CI only: keep it on 127.0.0.1; in production use "
        f"{PRODUCTION_IMAGE} or newer",
    )


def check_wheel() -> Check:
    version = pytriton_version()
    name = "nvidia-pytriton"
    if not version:
        return Check("ok", name, "not installed (needed only without another tritonserver)")
    if version != PYTRITON_VERSION:
        return Check("warning", name, f"{version}, tested with {PYTRITON_VERSION}", INSTALL_HINT)
    libc = platform.libc_ver()[1] or "0"
    if tuple(int(part) for part in libc.split(".")[:2]) < (2, 35):
        return Check("warning", name, f"needs glibc 2.35, here is {libc}", "use a newer system")
    return Check("ok", name, version)


def check_stub() -> Check:
    """The stub matters only to those who add Python models of their own."""
    name = "Python stub"
    try:
        server = find_tritonserver()
    except InstallationError:
        return Check("ok", name, "no server")
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = server.binary.parent.parent
    stub = root / "python_backend_stubs" / minor / "triton_python_backend_stub"
    installed = root / "backends" / "python" / "triton_python_backend_stub"
    if installed.is_file():
        return Check("ok", name, f"{installed} (only for Python models of your own)")
    if stub.is_file():
        return Check(
            "ok",
            name,
            f"for Python {minor}: {stub} (only for Python models of your own, in an environment "
            "with numpy < 2)",
        )
    return Check("ok", name, f"none for Python {minor} (only Python models of your own need it)")


def check_gpus() -> Check:
    gpus = list_gpus()
    if not gpus:
        return Check("ok", "GPUs", "none; models run on the CPU")
    found = "; ".join(f"{g.index}: {g.name}, {size(g.free)} of {size(g.total)} free" for g in gpus)
    shown = os.environ.get(VISIBLE_DEVICES)
    if shown is not None:
        found += f"; {VISIBLE_DEVICES} {shown!r} shows {len(visible_gpus())}"
    return Check("ok", "GPUs", found)


def check_torch_build() -> Check:
    """Whether torch can use what the machine has."""
    name = "torch build"
    if importlib.util.find_spec("torch") is None:
        return Check("missing", name, "torch is not installed", "pip install 'torch>=2.11'")
    import torch

    cuda = torch.version.cuda
    if list_gpus() and cuda is None:
        fix = "pip install --force-reinstall 'torch>=2.11' (a CUDA build)"
        return Check("warning", name, "for CPUs, but there is a GPU", fix)
    if visible_gpus() and not torch.cuda.is_available():
        return Check("warning", name, f"CUDA {cuda}, but it sees no GPU", "update the driver")
    return Check("ok", name, f"CUDA {cuda}" if cuda else "for CPUs")


def check_memory() -> Check:
    return Check("ok", "memory", f"{size(free_host_memory())} free, {os.cpu_count()} CPUs")


def check_shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("warning", "/dev/shm", "not there", "mount a tmpfs at /dev/shm")
    free = shutil.disk_usage(folder).free
    if free < _MIN_SHARED_MEMORY:
        fix = "start the container with --shm-size=1g (clients that pass tensors in shared memory)"
        return Check("warning", "/dev/shm", f"{size(free)} free", fix)
    return Check("ok", "/dev/shm", f"{size(free)} free")


def check_open_files() -> Check:
    """`serve` raises the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_OPEN_FILES:
        fix = f"`ulimit -Hn {_MIN_OPEN_FILES}` (systemd: LimitNOFILE); every connection takes one"
        return Check("warning", "open files", f"at most {hard}", fix)
    return Check("ok", "open files", "unlimited" if hard < 0 else f"at most {hard}")


def check_demo_model() -> Check:
    from slipstream.demo import demo_model_path

    try:
        return Check("ok", "demo model", str(demo_model_path()))
    except FileNotFoundError as error:
        return Check("warning", "demo model", "missing", str(error))


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_packages,
    check_torch_build,
    check_core,
    check_backend,
    check_server,
    check_wheel,
    check_server_bugs,
    check_stub,
    check_gpus,
    check_memory,
    check_shared_memory,
    check_open_files,
    check_demo_model,
)
