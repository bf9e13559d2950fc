# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Dependencies point one way; sources stay small; the product speaks of itself alone."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# A C++ layer may include itself and what is listed.
CPP_LAYERS = {
    "executor": set(),
    "worker_link": {"executor"},
    "triton": {"executor", "worker_link"},
    "bindings": {"executor", "worker_link"},
    "kernels": set(),
    "preload": set(),
}

# A Python package may import itself and what is listed (of slipstream).
PYTHON_LAYERS = {
    "errors": set(),
    "link": set(),
    "demo": set(),
    "tokenization": set(),
    "tokenizer": {"tokenization", "link"},
    "kernels": set(),
    "layers": {"kernels", "_kernels"},
    "quantization": set(),
    "attention": {"layers", "kernels", "_kernels"},
    "models": {"layers", "attention", "quantization"},
    "sampling": set(),
    "worker": {"models", "layers", "attention", "kernels", "sampling", "tokenization", "link"},
    "config": {"errors"},
    "repository": {"config", "demo", "errors", "models"},
    "server": {"config", "errors"},
    "api": {"_core", "errors", "config"},
    "cli": {"api", "config", "demo", "errors", "repository", "server", "_core"},
}


def python_sources() -> list[Path]:
    return sorted((ROOT / "slipstream").rglob("*.py"))


def cpp_sources() -> list[Path]:
    return sorted(p for p in (ROOT / "backend").rglob("*") if p.suffix in {".cc", ".h"})


def slipstream_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("slipstream.")}
    return found


@pytest.mark.parametrize("path", cpp_sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_cpp_includes_point_down(path: Path) -> None:
    layer = path.relative_to(ROOT / "backend").parts[0]
    included = set(re.findall(r'#include "(\w+)/', path.read_text()))
    assert included <= CPP_LAYERS[layer] | {layer}


@pytest.mark.parametrize("path", python_sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT / "slipstream").parts
    layer = parts[0].removesuffix(".py")
    imported = slipstream_imports(path) - {layer}
    if layer == "__init__":
        assert imported <= {"api"}, "importing slipstream stays cheap: see test_api_names"
    else:
        assert imported <= PYTHON_LAYERS[layer]


def test_only_the_executor_side_of_triton_knows_triton() -> None:
    for path in cpp_sources():
        if path.relative_to(ROOT / "backend").parts[0] != "triton":
            assert "TRITONSERVER_" not in path.read_text(), path


def test_torch_is_not_in_the_cpp_side() -> None:
    for path in [*cpp_sources(), ROOT / "CMakeLists.txt"]:
        assert not re.search(r"#include <(torch|ATen|c10)|find_package\(Torch", path.read_text())


def test_files_stay_on_a_few_screens() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in [*cpp_sources(), *python_sources()]}
    assert not {str(p): n for p, n in lengths.items() if n > 500}


def test_every_source_has_its_licence() -> None:
    for path in [*cpp_sources(), *python_sources()]:
        head = path.read_text().split("\n")[:3]
        assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head), path


def test_no_absolute_paths_of_a_build_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if not path.is_file() or path.suffix in {".safetensors", ".png"} or "third_party" in name:
            continue
        text = path.read_text(errors="replace")
        assert not re.search(r"/(work|root|home)/\w+/", text), name
