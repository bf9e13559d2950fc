# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiles what a GPU would run, down to its machine code, on a machine without one.

    python compile_for_gpu.py CAPABILITY FOLDER...

Each folder holds the config.json of a model. Its steps are computed with kernels that are compiled
instead of launched, so that every kernel is compiled for the very arguments that it gets. Prints
the name of each kernel and how many versions of it there are; fails where one does not compile.
"""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from sass import stray_descriptors
from triton.backends.compiler import GPUTarget

CAPABILITY = int(sys.argv[1])
SHARED_BYTES = 227 << 10  # of a program, at most
compiled: collections.Counter[str] = collections.Counter()
latest: dict[str, Any] = {}  # by name


class Driver:
    """What Triton asks of a GPU before it launches anything."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def compile_instead_of_launching() -> None:
    from triton.runtime import driver, jit

    driver.set_active(Driver())
    run = jit.JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool = False, **options: Any) -> Any:
        kernel = run(self, *arguments, warmup=True, **options)
        assert kernel.asm["cubin"], f"{self.__name__}: no machine code"
        compiled[self.__name__] = sum(len(caches[0]) for caches in self.device_caches.values())
        latest[self.__name__] = kernel
        return kernel

    jit.JITFunction.run = compile_only


class Nothing:
    """An event or a graph."""

    def record(self, stream: object) -> None: ...


def pretend_to_have_cuda() -> None:
    zeros = torch.zeros
    torch.zeros = lambda *a, pin_memory=False, **options: zeros(*a, **options)
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: divmod(CAPABILITY, 10)
    torch.cuda.current_stream = lambda device=None: None
    torch.cuda.Event = Nothing
    properties = SimpleNamespace(multi_processor_count=132)
    torch.cuda.get_device_properties = lambda device: properties
    for name, module in list(sys.modules.items()):
        if name.startswith("slipstream.") and hasattr(module, "has_kernels"):
            module.has_kernels = lambda device: True


def compile_steps(folder: str, **options: Any) -> None:
    from slipstream.link import VERSION
    from slipstream.models.selection import load_served
    from slipstream.worker.config import WorkerConfig
    from slipstream.worker.graph_runner import GraphRunner
    from slipstream.worker.staging import StepShape
    from slipstream.worker.startup import make_runner

    config = WorkerConfig(
        version="test",
        frame_version=VERSION,
        model=folder,
        device="cpu",
        tokens_per_block=32,
        kv_cache_tokens=4096,
        max_num_seqs=16,
        max_num_tokens=256,
        max_seq_len=512,
        cuda_graphs=False,
        load_format="dummy",
        **options,
    )
    model = load_served(
        Path(folder), config.dtype, torch.device("cpu"), impl="native", dummy_seed=0
    )
    runner = make_runner(config, model)
    assert isinstance(runner, GraphRunner)
    with torch.inference_mode():
        for shape in (runner._decode_shape(1), runner._decode_shape(16)):
            runner._compute(shape)
        runner._compute(StepShape(200, 8, 12, 8, 40))


def compile_products() -> None:
    from slipstream.kernels.skinny_linear import candidates, skinny_linear

    w = torch.empty(256, 1024, dtype=torch.bfloat16)
    arrivals = torch.zeros(256, dtype=torch.int32)
    for rows in (1, 16, 64):
        x = torch.empty(rows, 1024, dtype=torch.bfloat16)
        for config in candidates(rows, w):
            for activation in (None, "silu"):
                skinny_linear(x, w, arrivals, config, activation=activation)


def compile_streamed_products() -> None:
    """Of sizes that tiles do not divide, split and several tiles a program."""
    from slipstream.kernels.skinny_linear import skinny_linear
    from slipstream.kernels.stream_linear import streamed_candidates

    arrivals = torch.zeros(256, dtype=torch.int32)
    for rows, dtype in ((1, torch.bfloat16), (32, torch.float16), (64, torch.bfloat16)):
        x = torch.empty(rows, 1096, dtype=dtype)
        for n, activation in ((1000, None), (1000, "relu2"), (4000, None), (4000, "silu")):
            w = torch.empty(n, 1096, dtype=dtype)
            for config in streamed_candidates(rows, n, 1096, activation, 32):
                skinny_linear(x, w, arrivals, config, activation=activation)
                check_streamed(latest["_stream"])


def compile_joined_norms() -> None:
    """What two products do about a norm between them."""
    from slipstream.kernels.stream_linear import (
        joined_linear,
        stream_linear,
        streamed_candidates,
    )

    size, arrivals = 1096, torch.zeros(1096, dtype=torch.int32)
    hidden = torch.empty(64, size, dtype=torch.bfloat16)
    w, weight = torch.empty(size, size, dtype=torch.bfloat16), torch.empty(size)
    for rows in (1, 64):
        x = hidden[:rows]
        for config in streamed_candidates(rows, size, size, None, 16):
            values, divisor = joined_linear(x, w, arrivals, config, x, weight, scale=1.0, eps=1e-5)
            check_streamed(latest["_stream"])
            stream_linear(values, w, arrivals, config, divisor=divisor)
            check_streamed(latest["_stream"], waits=3)
        for config in streamed_candidates(rows, size, size, "silu", 8):
            stream_linear(values, w, arrivals, config, activation="silu", divisor=divisor)
            check_streamed(latest["_stream"], waits=3)


def compile_streamed_decodes() -> None:
    """With every mask, group and size of blocks in turn."""
    from slipstream.kernels import paged_decode
    from slipstream.kernels.decode_schedule import decode_schedule, schedule_decodes
    from slipstream.kernels.qkv import Unprepared

    device, rows = torch.device("cpu"), torch.zeros(3, dtype=torch.int32)
    slots, bf16 = torch.zeros(3, dtype=torch.int64), torch.bfloat16
    for heads, head_dim, per_block, kind, soft_cap, sinks, rotated, style, norm in (
        (8, 128, 16, "full", None, None, 128, "halves", torch.bfloat16),
        (56, 128, 32, "sliding", None, torch.zeros(56), 64, "halves", None),
        (64, 128, 64, "chunked", 30.0, None, 128, "interleaved", None),
        (8, 64, 32, "full", 30.0, torch.zeros(8), 64, "halves", torch.float32),
        (512, 64, 256, "sliding", None, None, 0, "halves", torch.bfloat16),
    ):
        q = torch.empty(3, heads + 16, head_dim, dtype=torch.bfloat16)[:, :heads]
        pool = torch.empty(4, 2, 8, per_block, head_dim, dtype=torch.bfloat16)
        out = torch.empty(3, heads * head_dim, dtype=torch.bfloat16)
        schedule = decode_schedule(3, 8, 132, 132, device, streamed=True)
        masked = {"mask_kind": kind, "mask_size": 70}
        tile = paged_decode.decode_tile(head_dim, True)
        schedule_decodes(rows, rows, rows, schedule, tile=tile, **masked)
        workspace = paged_decode.decode_workspace(schedule, heads, head_dim)
        tables = torch.zeros((5, 40), dtype=torch.int32)
        turns = torch.empty(3, 1, rotated, dtype=bf16) if rotated else None
        weight = None if norm is None else torch.empty(head_dim, dtype=norm)
        factor = torch.empty(3, dtype=bf16) if soft_cap else None
        after = head_dim == 64
        unprepared = Unprepared(slots, turns, turns, style, weight, weight, 1e-6, after, factor)
        for new in (None, unprepared):
            paged_decode.decode_attention(
                q, pool, tables, out, workspace, schedule,
                n=3, scale=0.1, soft_cap=soft_cap, sinks=sinks, new=new, **masked,
            )  # fmt: skip
            kernel, waits = latest["_stream_decode"], 1 if new else 2
            check_streamed(kernel, waits=waits, early=False, spills=new is not None)
            check_carried(kernel, [8, 6])


def compile_streamed_prefills() -> None:
    """With every mask, and groups and blocks of many sizes."""
    from slipstream.kernels.paged_prefill import prefill_attention

    ints, tables = torch.zeros(3, dtype=torch.int32), torch.zeros((5, 40), dtype=torch.int32)
    for heads, head_dim, per_block, kind, soft_cap, sinks in (
        (32, 128, 16, "full", None, None),
        (56, 128, 32, "sliding", None, torch.zeros(56)),
        (64, 128, 64, "chunked", 30.0, None),
        (8, 64, 32, "full", 30.0, torch.zeros(8)),
        (1024, 64, 256, "full", None, None),
    ):
        q = torch.empty(3, heads, head_dim, dtype=torch.bfloat16)
        pool = torch.empty(4, 2, 8, per_block, head_dim, dtype=torch.bfloat16)
        out = torch.empty(3, heads * head_dim, dtype=torch.bfloat16)
        prefill_attention(
            q, pool, tables, ints, ints, ints, ints, out, scale=0.1, mask_kind=kind, mask_size=70,
            soft_cap=soft_cap, sinks=sinks, streamed=True,
        )  # fmt: skip
        kernel = latest["_stream_prefill"]
        ptx = kernel.asm["ptx"]
        assert "wgmma.mma_async" in ptx
        assert "cp.async.bulk.tensor" in ptx
        assert "ldmatrix" not in ptx, "operands come by other ways"
        waits = ptx.count("griddepcontrol.wait")
        assert waits == 3, "every role waits for the kernel before, once"
        check_descriptors(kernel)
        check_carried(kernel, [6])
        assert kernel.metadata.shared <= SHARED_BYTES


def check_carried(kernel: Any, most: list[int]) -> None:
    """Of the loops that change nothing but numbers, those of most of them still change so many: all
    that they were written to."""
    loops = re.findall(r"scf\.for .* -> \((i32(?:, i32)*)\)", kernel.asm["ttgir"])
    found = sorted((len(changed.split(", ")) for changed in loops), reverse=True)
    assert found[: len(most)] == most, "a value was taken to stay"


def check_descriptors(kernel: Any) -> None:
    stray = stray_descriptors(kernel.asm["cubin"])
    assert not stray, f"operands from elsewhere: {stray}"


def check_streamed(
    kernel: Any, *, waits: int = 2, early: bool = True, spills: bool = False
) -> None:
    """Nothing goes past the ring. There are so many waits for the kernel before, and the first of
    what the ring holds is fetched before one of them, or nothing is. spills: some may be, but only
    before what is done with a tile."""
    places = {
        name: [place.start() for place in re.finditer(rf"\b{name}\b", kernel.asm["sass"])]
        for name in (
            *("UTMALDG", "HGMMA", "ACQBULK", "PREEXIT"),
            *("LDGSTS", "LDSM", "STL"),  # other ways of operands; spills
        )
    }
    if spills:
        assert all(place < places["HGMMA"][0] for place in places.pop("STL")), "spills"
    found = [name for name in places if places[name]]
    assert found == ["UTMALDG", "HGMMA", "ACQBULK", "PREEXIT"], found
    loads = places["UTMALDG"]
    # Those who multiply wait as well, and those who find what to divide by.
    between = [wait for wait in places["ACQBULK"] if loads[0] < wait < loads[-1]]
    assert len(places["ACQBULK"]) == waits, "other waits for the kernel before"
    assert len(between) == early, "loads before the wait, or none"
    check_descriptors(kernel)
    assert kernel.metadata.shared <= SHARED_BYTES


def compile_beside_flashinfer() -> None:
    """What steps with FlashInfer's kernels launch besides."""
    from slipstream.kernels.page_tables import gather_tables
    from slipstream.kernels.qkv import prepare_qkv

    qkv = torch.empty(3, 12, 128, dtype=torch.bfloat16)
    pool = torch.empty(4, 2, 2, 32, 128, dtype=torch.bfloat16)
    slots = torch.zeros(3, dtype=torch.int64)
    prepare_qkv(qkv, pool, slots, kv_heads=2, q_out=torch.empty(3, 8, 128, dtype=torch.bfloat16))
    rows, tables = torch.zeros(3, dtype=torch.int32), torch.zeros((5, 40), dtype=torch.int32)
    for kind in ("full", "sliding"):
        gather_tables(
            tables, rows, rows, rows, tables, rows, per_block=32, mask_kind=kind, mask_size=70
        )


def main() -> None:
    import slipstream.worker.graph_runner
    import slipstream.worker.startup  # noqa: F401 imports all layers

    pretend_to_have_cuda()
    compile_instead_of_launching()
    for folder in sys.argv[2:]:
        compile_steps(folder)
    if CAPABILITY >= 89:
        compile_steps(sys.argv[2], kv_cache_dtype="fp8")
    compile_products()
    if CAPABILITY == 90:
        compile_streamed_products()
        compile_joined_norms()
        compile_streamed_decodes()
        compile_streamed_prefills()
    compile_beside_flashinfer()
    assert not triton.knobs.runtime.interpret
    for name, versions in sorted(compiled.items()):
        sys.stdout.write(f"{name} {versions}\n")


if __name__ == "__main__":
    main()
