# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The hand-written declarations of Triton's C API against the real server's dynamic symbols."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADER = ROOT / "backend" / "triton" / "triton_abi.h"
SECTION_DYNSYM = 11


def dynamic_symbols(library: Path) -> Iterator[tuple[str, bool]]:
    """Yields (name, defined) of every dynamic symbol of a 64-bit little-endian ELF file."""
    data = library.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{library} is not a 64-bit little-endian ELF file"
    section_offset, size, count = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HH", data, 58),
    )
    headers = [
        struct.unpack_from("<IIQQQQII", data, section_offset + i * size) for i in range(count)
    ]
    symbols = next(h for h in headers if h[1] == SECTION_DYNSYM)
    names = headers[symbols[6]][4]
    for offset in range(symbols[4], symbols[4] + symbols[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", data, offset)
        start = names + name
        yield data[start : data.index(b"\0", start)].decode(), section != 0


def declared() -> tuple[set[str], set[str]]:
    """Names of the functions in the header: (called, exported)."""
    text = re.sub(r"//[^\n]*", "", HEADER.read_text())
    called, _, exported = text.partition("#define TRITONBACKEND_EXPORT")
    pattern = re.compile(r"\b(TRITON(?:SERVER|BACKEND)_\w+)\(")
    return set(pattern.findall(called)), set(pattern.findall(exported))


@pytest.fixture(scope="module")
def server_library() -> Path:
    """libtritonserver of the installed nvidia-pytriton wheel."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        pytest.skip("nvidia-pytriton is not installed")
    folder = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    return next(folder.glob("libtritonserver*.so*"))


def test_server_offers_every_declared_function(server_library: Path) -> None:
    called, _ = declared()
    offered = {name for name, defined in dynamic_symbols(server_library) if defined}
    assert len(called) > 40
    assert called - offered == set()


def test_exports_are_the_entry_points() -> None:
    _, exported = declared()
    assert exported == {
        "TRITONBACKEND_Initialize",
        "TRITONBACKEND_Finalize",
        "TRITONBACKEND_GetBackendAttribute",
        "TRITONBACKEND_ModelInitialize",
        "TRITONBACKEND_ModelFinalize",
        "TRITONBACKEND_ModelInstanceInitialize",
        "TRITONBACKEND_ModelInstanceFinalize",
        "TRITONBACKEND_ModelInstanceExecute",
        "TRITONBACKEND_ModelInstanceReady",
    }


def test_every_entry_point_is_guarded() -> None:
    """No exception crosses the C boundary: a body is one Guarded call, or returns null at once."""
    _, exported = declared()
    text = (ROOT / "backend" / "triton" / "api.cc").read_text()
    text = re.sub(r"//[^\n]*", "", text)
    inside = text[text.index('extern "C" {') : text.rindex("}")]
    functions = re.findall(
        r"^TRITONSERVER_Error\* (TRITONBACKEND_\w+)\([^)]*\) \{(.*?)\}(?:\n(?=\S|\Z)|\n\n)",
        inside,
        re.M | re.S,
    )
    bodies = {name: body.strip() for name, body in functions}
    assert bodies.keys() == exported
    for name, body in bodies.items():
        # One statement: what it begins with is what it ends with.
        statement = r"return Guarded\(__func__, \[[=\w]*\] \{\n(    [^\n]*\n|\n)*  \}\);"
        assert body == "return nullptr;" or re.fullmatch(statement, body), (name, body)
    guard = (ROOT / "backend" / "triton" / "error.h").read_text()
    assert re.search(r"TRITONSERVER_Error\* Guarded\([^)]*\) noexcept \{\n  try \{", guard)
    assert "} catch (...) {" in guard


def built_backends() -> list[Path]:
    """Every libtriton_slipstream.so of this checkout's builds."""
    places = ("build/**", "slipstream/backends/**")
    return [path for place in places for path in ROOT.glob(f"{place}/libtriton_slipstream.so")]


@pytest.mark.parametrize("library", built_backends(), ids=str)
def test_library_exports_nothing_else_and_needs_nothing_undeclared(
    library: Path, server_library: Path
) -> None:
    called, exported = declared()
    symbols = dict(dynamic_symbols(library))
    defined = {name for name, is_defined in symbols.items() if is_defined}
    assert {name for name in defined if name.startswith("TRITON")} == exported
    # Weak C++ runtime symbols apart, the linker script hides everything.
    assert {name for name in defined if "slipstream" in name} == set()
    needed = {n for n, is_defined in symbols.items() if not is_defined and n.startswith("TRITON")}
    assert needed <= called
