# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Looks at Hopper's machine code for what an assembler got wrong.

A product is several wgmmas, one for each 16 columns. Uniform registers describe their operands in
shared memory. ptxas 12.8 may compute the descriptors of all but a product's first wgmma on one of
several paths to it only.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

from triton import knobs

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z]\S*)\s*(.*?)\s*;")
_REGISTERS = 64  # uniform ones
_ENTRY = -1  # in place of an instruction: not defined yet

Definitions = dict[int, frozenset[int]]  # of registers, by the indices of instructions


class Instruction(NamedTuple):
    address: int
    conditional: bool
    name: str
    operands: list[str]

    @property
    def defined(self) -> list[int]:
        """Uniform registers."""
        found = re.fullmatch(r"UR(\d+)", self.operands[0])
        if not found or self.name[0] != "U" and self.name not in ("R2UR", "S2UR"):
            return []
        first = int(found[1])
        return [first, first + 1] if ".64" in self.name or ".WIDE" in self.name else [first]

    @property
    def used(self) -> list[int]:
        sources = self.operands[bool(self.defined) :]
        found = [int(n) for n in re.findall(r"\bUR(\d+)\b", " ".join(sources))]
        return found + [n + 1 for n in found if self.name.startswith("UIADD3.64")]


def instructions(cubin: bytes) -> list[Instruction]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        cuobjdump = Path(knobs.nvidia.cuobjdump.path)
        listing = subprocess.check_output([cuobjdump, "-sass", file.name], text=True)
    found = (_LINE.match(line) for line in listing.splitlines())
    return [
        Instruction(int(m[1], 16), bool(m[2]), m[3], re.split(r",\s*", m[4])) for m in found if m
    ]


def _successors(code: list[Instruction]) -> list[list[int]]:
    index = {instruction.address: i for i, instruction in enumerate(code)}
    jumps = {i: index[int(c.operands[-1], 16)] for i, c in enumerate(code) if c.name == "BRA"}
    following = [[i + 1] for i in range(len(code) - 1)] + [[]]
    for i, instruction in enumerate(code):
        goes_on = instruction.conditional or len(instruction.operands) > 1
        if instruction.name == "BRA":
            following[i] = [jumps[i]] + ([i + 1] if goes_on else [])
        elif instruction.name == "EXIT" and not goes_on:
            following[i] = []
        elif instruction.name == "BRX":  # to the roles of warps, each of which jumps back before it
            back = [j for j, k in jumps.items() if j > i >= k and not code[j].conditional]
            following[i] = [j + 1 for j in (i, *back)]
    return following


def _reaching(code: list[Instruction]) -> list[Definitions]:
    """What may have defined the uniform registers before each instruction."""
    following, defined = _successors(code), [instruction.defined for instruction in code]
    paths = Counter(j for places in following for j in places)  # to each
    before: list[Definitions] = [{} for _ in code]
    before[0] = {n: frozenset([_ENTRY]) for n in range(_REGISTERS + 1)}
    queue = deque([0])
    while queue:
        i = queue.popleft()
        after = before[i]
        if defined[i]:
            kept = after if code[i].conditional else {}
            after = after | {n: kept.get(n, frozenset()) | {i} for n in defined[i]}
        for j in following[i]:
            known, merged = before[j], after
            if known and paths[j] > 1:
                merged = {n: known[n] | after[n] for n in after}
            if merged != known:
                before[j] = merged
                queue.append(j)
    return before


def _origin(code: list[Instruction], before: list[Definitions], i: int, register: int) -> frozenset:
    """Where paths that define a register, or what it is computed from, come together."""
    origins, seen, queue = set(), set(), [(i, register)]
    while queue:
        place = queue.pop()
        if place in seen:
            continue
        seen.add(place)
        definitions = before[place[0]][place[1]]
        if len(definitions) > 1 or _ENTRY in definitions:
            origins.add(definitions)
        else:
            (definition,) = definitions
            queue += [(definition, n) for n in code[definition].used]
    return frozenset(origins)


def stray_descriptors(cubin: bytes) -> list[str]:
    """Addresses of wgmmas with an operand of another origin than its product's first, or of none.

    Empty, too, for code without wgmmas.
    """
    code = instructions(cubin)
    before = _reaching(code)
    stray, firsts = [], {}
    for i, instruction in enumerate(code):
        if instruction.name.split(".")[0] != "HGMMA":
            continue
        operands = " ".join(instruction.operands)
        register = int(re.search(r"gdesc\[UR(\d+)\]", operands)[1])
        left = [register] if instruction.operands[1].startswith("gdesc") else []
        for which, n in enumerate([register + 2, *left]):
            origin = _origin(code, before, i, n)
            unknown = any(_ENTRY in definitions for definitions in origin)
            if unknown or firsts.setdefault(which, origin) != origin:
                stray.append(f"{instruction.address:#x}")
        if "gsb0" in operands:  # the product's last
            firsts = {}
    return stray
