# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the path from the executor to gRPC clients costs, through a real tritonserver.

    cmake --preset release -DSLIPSTREAM_BUILD_BENCHMARKS=ON && cmake --build --preset release
    .venv/bin/python benchmarks/triton_path.py

No model runs: the worker is scripted. Three paths to it: `llm` directly, the ensemble as one model
(fused), and the ensemble as steps. `flood` offers more tokens than can be delivered, so that
what is delivered is the limit; tokens that wait for a stream are merged into one response, which is
why responses and tokens are counted apart. `paced` makes a step every 40 ms and measures from the
step to the moment when the last of all streams has its token. Server and clients share this
machine; the server's CPU time is that of the tritonserver process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tritonclient import grpc
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import triton_to_np_dtype

from slipstream.config import SlipstreamConfig, load_config
from slipstream.demo import demo_model_path
from slipstream.repository import build_repository, resolve
from slipstream.repository.render import RepositorySettings, render_steps, to_text
from slipstream.server import (
    ServerOptions,
    TritonProcess,
    backend_directory,
    choose_ports,
    find_tritonserver,
)
from slipstream.tokenization import export_token_table

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
MODELS = ("preprocessing", "llm", "postprocessing", "ensemble", "steps")
FLOOD_STEP_US = 1000  # 64 streams: 64,000 tokens/s are offered
PACED_STEP_US = 40_000
FLOOD_TOKENS = 256
PROMPT = b"Once upon a time there was a little girl who lived in a small house by the sea."
NUM_PROBES = 20
WARM_UP_S = 1.0

COLUMNS = (
    "responses/s",
    "tokens/s",
    "CPU us/response",
    "CPU us/token",
    "last p50 ms",
    "last p99 ms",
)
# The model that each path asks.
PATHS = {"direct": "llm", "fused": "ensemble", "steps": "steps"}


@dataclass(frozen=True)
class Flood:
    """One run at full speed."""

    responses_per_s: float
    tokens_per_s: float
    cpu_us_per_response: float
    cpu_us_per_token: float


@dataclass(frozen=True)
class Paced:
    """One run at a fixed pace: milliseconds from a step to the last stream's token."""

    steps: int
    last_p50_ms: float
    last_p99_ms: float


class Server:
    """A tritonserver with the generated repository and a scripted worker."""

    def __init__(self, folder: Path, step_us: int, streams: int, backends: Path) -> None:
        folder.mkdir()
        repository = folder / "models"
        repository.mkdir()
        config = resolve(load_config(None, _options(folder, step_us, streams)))
        build_repository(config, repository)
        _add_steps(repository, config)
        self._ports = choose_ports(HOST)
        self.process = TritonProcess(
            find_tritonserver(),
            ServerOptions(
                repository=repository,
                backends=backends,
                host=HOST,
                ports=self._ports,
                log=folder / "server.log",
            ),
        )
        self.process.wait_ready(MODELS, 120)

    @property
    def grpc_port(self) -> int:
        return self._ports.grpc

    def cpu_seconds(self) -> float:
        """User and system time of the server process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def generated_tokens(self) -> float:
        """Tokens generated so far, by the server's own metrics."""
        with urllib.request.urlopen(f"http://{HOST}:{self._ports.metrics}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith("slipstream_generated_tokens_total"):
                    return float(line.split()[-1])
        return 0.0


def _add_steps(repository: Path, config: SlipstreamConfig) -> None:
    """The ensemble of steps beside the fused one."""
    message = render_steps(RepositorySettings.of(config))
    message.name = "steps"
    (repository / "steps" / "1").mkdir(parents=True)
    (repository / "steps" / "config.pbtxt").write_text(to_text(message), encoding="utf-8")


def _options(folder: Path, step_us: int, streams: int) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    table = folder / "token_table"
    table.write_bytes(export_token_table(tokenizer))
    scripted = {
        "vocab_size": len(tokenizer),
        "end_ids": [tokenizer.eos_token_id],
        "token_table_file": str(table),
        "emit": "echo",
        "step_us": step_us,
        "num_blocks": 32 * (streams + 8),
    }
    return {
        "worker": "scripted",
        "scripted": scripted,
        "tokenizer": str(demo_model_path()),
        "max_num_seqs": streams + 8,
    }


@contextmanager
def serving(step_us: int, streams: int, backends: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        server = Server(Path(folder) / "server", step_us, streams, backends)
        with server.process:
            yield server


def tensor(name: str, values: npt.ArrayLike, dtype: str) -> grpc.InferInput:
    """An input of one row."""
    array = np.asarray([values], triton_to_np_dtype(dtype))
    made = grpc.InferInput(name, list(array.shape), dtype)
    made.set_data_from_numpy(array)
    return made


def request_data(model: str, inputs: list[grpc.InferInput]) -> bytes:
    """A serialized ModelInferRequest that asks for an empty final response."""
    request = _get_inference_request(
        model_name=model,
        inputs=inputs,
        model_version="",
        request_id="",
        outputs=None,
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
    )
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    data: bytes = request.SerializeToString()
    return data


def request_of(path: str, tokens: int) -> bytes:
    """A streaming request for so many tokens."""
    if path == "direct":
        ids = np.arange(300, 316)
        inputs = [
            tensor("input_ids", ids, "INT32"),
            tensor("input_lengths", [ids.size], "INT32"),
            tensor("request_output_len", [tokens], "INT32"),
            tensor("streaming", [True], "BOOL"),
        ]
    else:
        inputs = [
            tensor("text_input", [PROMPT], "BYTES"),
            tensor("max_tokens", [tokens], "INT32"),
            tensor("stream", [True], "BOOL"),
        ]
    return request_data(PATHS[path], inputs)


class Clients:
    """A running bench_stream_client; see benchmarks/stream_client.cc."""

    def __init__(
        self, binary: Path, server: Server, request: bytes, streams: int, seconds: float
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="slipstream-bench-")
        request_file = Path(self._folder.name) / "request"
        request_file.write_bytes(request)
        self._record = Path(self._folder.name) / "record"
        port, warm_up = str(server.grpc_port), str(WARM_UP_S)
        arguments = [port, str(request_file), str(streams), warm_up, str(seconds)]
        self._process = subprocess.Popen(
            [str(binary), *arguments, str(self._record)], stdout=subprocess.PIPE, text=True
        )

    def wait(self, word: str) -> int:
        """Until it says ``word``; returns the number beside it. Raises RuntimeError if it ends."""
        output: IO[str] | None = self._process.stdout
        assert output is not None, "stdout is a pipe"
        for line in output:
            if line.startswith(word):
                return int(line.split()[1]) if " " in line else 0
        raise RuntimeError("bench_stream_client failed; its error is above")

    def finish(self) -> npt.NDArray[np.uint64]:
        """Arrival times in ns of all responses that are not final ones."""
        self.wait("done")
        self._process.wait()
        records: npt.NDArray[np.uint64] = np.fromfile(self._record, np.uint64)
        self._folder.cleanup()
        times: npt.NDArray[np.uint64] = records[(records & 1) == 0] >> 16
        return times


def flood(binary: Path, server: Server, path: str, streams: int, seconds: float) -> Flood:
    clients = Clients(binary, server, request_of(path, FLOOD_TOKENS), streams, seconds)
    clients.wait("begin")
    cpu, tokens = server.cpu_seconds(), server.generated_tokens()
    responses = clients.wait("end")
    cpu, tokens = server.cpu_seconds() - cpu, server.generated_tokens() - tokens
    clients.finish()
    return Flood(responses / seconds, tokens / seconds, 1e6 * cpu / responses, 1e6 * cpu / tokens)


def paced(binary: Path, server: Server, path: str, streams: int, seconds: float) -> Paced:
    period = PACED_STEP_US * 1000
    tokens = int((WARM_UP_S + seconds) * 1e9 / period)
    # No second request begins: every stream is one request, from beginning to end.
    clients = Clients(binary, server, request_of(path, tokens), streams, 0.1)
    clients.wait("begin")
    phase = _step_phase(server, period)
    arrivals = clients.finish().astype(np.int64) - phase
    step, latency = np.divmod(arrivals, period)
    steps, counts = np.unique(step, return_counts=True)
    full = steps[counts == streams]  # all streams take part
    last = np.sort([latency[step == number].max() for number in full]) / 1e6
    if last.size < 10:
        raise RuntimeError(f"only {last.size} steps served all {streams} streams in their time")
    return Paced(last.size, float(np.median(last)), float(last[int(last.size * 0.99)]))


def _step_phase(server: Server, period: int) -> int:
    """When steps end, modulo the period, on the monotonic clock; while streams keep them going.

    The scripted worker's steps end at equal distances. The server says when it had a request's
    first token, which is a little later; the earliest of several comes closest.
    """
    client = grpc.InferenceServerClient(f"{HOST}:{server.grpc_port}")
    times: list[int] = []

    def on_response(result: grpc.InferResult | None, error: Exception | None) -> None:
        if error is not None or result is None:
            raise RuntimeError(f"probe: {error}")
        values = result.as_numpy("first_token_time_ns")
        if values is not None:
            times.append(int(values.flat[0]))

    for _ in range(NUM_PROBES):
        client.start_stream(on_response)
        inputs = [
            tensor("input_ids", [400, 401, 402, 403], "INT32"),
            tensor("input_lengths", [4], "INT32"),
            tensor("request_output_len", [1], "INT32"),
            tensor("return_perf_metrics", [True], "BOOL"),
            tensor("streaming", [True], "BOOL"),
        ]
        client.async_stream_infer("llm", inputs)
        client.stop_stream()  # waits for the answer
    client.close()
    offsets = [(time - times[0] + period // 2) % period - period // 2 for time in times]
    return times[0] + min(offsets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="of every run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every kind, interleaved")
    parser.add_argument("--client", type=Path, default=ROOT / "build/release/bench_stream_client")
    parser.add_argument("--backends", type=Path, help="default: the installed package's")
    options = parser.parse_args()
    if not options.client.is_file():
        parser.error(f"{options.client} does not exist; build it as the head of this file says")
    backends = options.backends or backend_directory()
    runs: dict[tuple[str, str], list[Any]] = {}
    for step_us, measure in ((FLOOD_STEP_US, flood), (PACED_STEP_US, paced)):
        with serving(step_us, options.streams, backends) as server:
            for _ in range(options.rounds):
                for path in PATHS:
                    run = measure(options.client, server, path, options.streams, options.seconds)
                    runs.setdefault((path, measure.__name__), []).append(run)
    report(runs, options.streams)


def report(runs: dict[tuple[str, str], list[Any]], streams: int) -> None:
    """The median of all runs, and the best beside it."""

    def show(path: str, kind: str, field: str, best: Any, digits: int) -> str:
        values = [getattr(run, field) for run in runs[path, kind]]
        return f"{statistics.median(values):.{digits}f} ({best(values):.{digits}f})"

    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}")
    print(f"{streams} streams; median of the runs (best of them)")
    print(f"{'path':10}" + "".join(f"{column:>18}" for column in COLUMNS))
    for path in PATHS:
        cells = (
            show(path, "flood", "responses_per_s", max, 0),
            show(path, "flood", "tokens_per_s", max, 0),
            show(path, "flood", "cpu_us_per_response", min, 1),
            show(path, "flood", "cpu_us_per_token", min, 1),
            show(path, "paced", "last_p50_ms", min, 2),
            show(path, "paced", "last_p99_ms", min, 2),
        )
        print(f"{path:10}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
