# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model on a GPU through tritonserver, beside the same Executor and worker in this process.

    cmake --preset release -DSLIPSTREAM_BUILD_BENCHMARKS=ON && cmake --build --preset release
    .venv/bin/python benchmarks/triton_gpu.py qwen3-0.6b [--streams 1,8,64,256]

N clients, each sending its next request when the last one has ended: a prompt of ``--prompt``
tokens, ``--new`` new ones, streamed, no reuse of prefixes, random weights. Tokens per second are
counted in a window after a warm-up, by the Executor. In this process the client is one thread on
the Executor's events. Paths through tritonserver: `llm` with token ids, and `ensemble` with text.

Beside them, in this process as well, one more client sends probes of one token, one after the
other: their times to the first token are printed, and of those through tritonserver what is added
to the Executor's own times of the same requests. Clients that begin together end together: the
largest times are those of a probe behind as many new prompts as there are clients.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu import MODELS, random_prompts
from triton_path import HOST, ROOT, request_data, tensor
from tritonclient import grpc

from slipstream import SamplingParams, _core
from slipstream.config import load_config
from slipstream.repository import build_repository, resolve
from slipstream.server import (
    ServerOptions,
    TritonProcess,
    backend_directory,
    choose_ports,
    find_tritonserver,
)

MAX_NUM_SEQS = 257  # with the probe
CLIENT, PROBE = 1, 2
PROBE_PROMPT = list(range(300, 332))
WORKER = {
    "load_format": "dummy",
    "device": "cuda",
    "max_num_seqs": MAX_NUM_SEQS,
    "max_num_tokens": 8192,
    "max_seq_len": 4096,
    "tokens_per_block": 64,
}


@dataclass(frozen=True)
class Run:
    """One path at one number of streams."""

    path: str
    streams: int
    tokens_per_s: float
    first_token_ms: list[float]  # of the probes, as their client sees it
    added_ms: list[float]  # what of it is not the Executor's

    def __str__(self) -> str:
        first, added = (
            "/".join(f"{np.percentile(times, q):.2f}" for q in (50, 99)) if times else "-"
            for times in (self.first_token_ms, self.added_ms)
        )
        return (
            f"{self.path:10} {self.streams:4d} streams: {self.tokens_per_s:9,.0f} tokens/s, first "
            f"token p50/p99 {first} ms, added {added} ms, {len(self.first_token_ms)} probes"
        )


def make_checkpoint(folder: Path, values: dict[str, Any]) -> None:
    """config.json, and a tokenizer of as many entries, which takes one byte for a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (folder / "config.json").write_text(json.dumps(values))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"w{number}" for number in range(values["vocab_size"] - len(letters))]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )


class InProcess:
    """The Executor with its worker, driven by this thread."""

    def __init__(self, folder: Path) -> None:
        config = _core.ExecutorConfig()
        config.max_num_seqs = MAX_NUM_SEQS
        config.max_num_tokens = WORKER["max_num_tokens"]
        config.enable_prefix_reuse = False
        worker = json.dumps({"model": str(folder), **WORKER})
        self._executor = _core.Executor.start_process(config, sys.executable, worker, None)

    def run(self, prompt: list[int], new: int, streams: int, warm_up: float, seconds: float) -> Run:
        fields = SamplingParams(max_tokens=new, ignore_eos=True).request_fields([])

        def submit() -> None:
            self._executor.submit(CLIENT, prompt=prompt, streaming=True, return_text=True, **fields)

        one = SamplingParams(max_tokens=1, ignore_eos=True).request_fields([])
        first_token_ms: list[float] = []
        sent = 0.0

        def probe() -> None:
            nonlocal sent
            sent = time.monotonic()
            self._executor.submit(PROBE, prompt=PROBE_PROMPT, return_text=True, **one)

        for _ in range(streams):
            submit()
        begin = time.monotonic() + warm_up
        at: list[tuple[float, float]] = []  # tokens and time, at both ends of the window
        running = streams
        while running:
            events = self._executor.wait_events(0.05)
            now = time.monotonic()
            if now >= begin + len(at) * seconds and len(at) < 2:
                at.append((float(self._executor.metrics()["generated_tokens"]), now))
                if len(at) == 1:
                    probe()
                    running += 1
            for event in events:
                if not event["request_done"]:
                    continue
                assert event["reason"] == "length", event
                if event["ticket"] == PROBE:
                    first_token_ms.append((time.monotonic() - sent) * 1e3)
                    if len(at) < 2:
                        probe()
                    else:
                        running -= 1
                elif len(at) < 2:
                    submit()
                else:
                    running -= 1
        rate = (at[1][0] - at[0][0]) / (at[1][1] - at[0][1])
        return Run("in process", streams, rate, first_token_ms, [])

    def close(self) -> None:
        self._executor.shutdown(drain=False)


class Server:
    """A tritonserver with the generated repository."""

    def __init__(self, folder: Path, work: Path, backends: Path, client: Path) -> None:
        self._client = client
        self._work = work
        options = {"model": str(folder), "enable_prefix_reuse": False, **WORKER}
        repository = work / "models"
        repository.mkdir()
        build_repository(resolve(load_config(None, options)), repository)
        self._ports = choose_ports(HOST)
        options_ = ServerOptions(
            repository=repository,
            backends=backends,
            host=HOST,
            ports=self._ports,
            log=work / "server.log",
        )
        self.process = TritonProcess(find_tritonserver(), options_)
        self.process.wait_ready(("llm", "ensemble"), 300)

    def run(self, path: str, request: bytes, streams: int, warm_up: float, seconds: float) -> Run:
        request_file, record = self._work / "request", self._work / "record"
        request_file.write_bytes(request)
        arguments = [str(self._ports.grpc), str(request_file), str(streams)]
        arguments += [str(warm_up), str(seconds), str(record)]
        process = subprocess.Popen(
            [str(self._client), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None, "stdout is a pipe"
        at: dict[str, tuple[float, float]] = {}
        probe = Probe(self._ports.grpc, path)
        for line in process.stdout:
            word = line.split()[0]
            at[word] = (self._generated(), time.monotonic())
            if word == "begin":
                probe.start()
            elif word == "end":
                probe.stop()
        assert process.wait() == 0
        rate = (at["end"][0] - at["begin"][0]) / (at["end"][1] - at["begin"][1])
        return Run(path, streams, rate, probe.first_token_ms, probe.added_ms)

    def _generated(self) -> float:
        with urllib.request.urlopen(f"http://{HOST}:{self._ports.metrics}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith("slipstream_generated_tokens_total"):
                    return float(line.split()[-1])
        return 0.0


class Probe:
    """Requests of one token, one after the other over one gRPC stream, until it is stopped."""

    def __init__(self, port: int, path: str) -> None:
        self.first_token_ms: list[float] = []
        self.added_ms: list[float] = []
        self._path = path
        self._client = grpc.InferenceServerClient(f"{HOST}:{port}")
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.stop_stream()
        self._client.close()

    def _run(self) -> None:
        inputs = [tensor("return_perf_metrics", [True], "BOOL")]
        if self._path == "llm":
            inputs += [
                tensor("input_ids", PROBE_PROMPT, "INT32"),
                tensor("input_lengths", [len(PROBE_PROMPT)], "INT32"),
                tensor("request_output_len", [1], "INT32"),
            ]
        else:
            inputs += [
                tensor("text_input", [b"a probe of thirty-two characters"], "BYTES"),
                tensor("max_tokens", [1], "INT32"),
            ]
        while not self._stopped.is_set():
            start = time.monotonic()
            self._client.async_stream_infer(self._path, inputs)
            result, error = self._answers.get()
            whole = time.monotonic() - start
            if error is not None:
                raise RuntimeError(f"probe: {error}")
            arrival, first = (
                int(result.as_numpy(name).flat[0])
                for name in ("arrival_time_ns", "first_token_time_ns")
            )
            self.first_token_ms.append(whole * 1e3)
            self.added_ms.append(whole * 1e3 - (first - arrival) / 1e6)


def requests_of(prompt: list[int], new: int) -> dict[str, bytes]:
    """A serialized request for each path through tritonserver."""
    ids = [
        tensor("input_ids", prompt, "INT32"),
        tensor("input_lengths", [len(prompt)], "INT32"),
        tensor("request_output_len", [new], "INT32"),
        tensor("end_id", [-1], "INT32"),
        tensor("streaming", [True], "BOOL"),
    ]
    text = "".join(chr(97 + token % 26) for token in prompt).encode()
    words = [
        tensor("text_input", [text], "BYTES"),
        tensor("max_tokens", [new], "INT32"),
        tensor("end_id", [-1], "INT32"),
        tensor("stream", [True], "BOOL"),
    ]
    return {
        "llm": request_data("llm", ids),
        "ensemble": request_data("ensemble", words),
    }


@contextmanager
def closing(thing: Any, close: Callable[[], Any]) -> Iterator[Any]:
    try:
        yield thing
    finally:
        close()


def measured(model: str, options: argparse.Namespace) -> list[Run]:
    values = MODELS[model]
    prompt = random_prompts(values["vocab_size"], [options.prompt], 1)[0]
    window = (options.warm_up, options.seconds)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as name:
        folder, work = Path(name, "model"), Path(name, "work")
        folder.mkdir()
        work.mkdir()
        make_checkpoint(folder, values)

        def note(run: Run) -> None:
            runs.append(run)
            print(f"{model} {run}", flush=True)

        alone = InProcess(folder)
        with closing(alone, alone.close):
            for streams in options.streams:
                note(alone.run(prompt, options.new, streams, *window))
        server = Server(folder, work, options.backends or backend_directory(), options.client)
        with server.process:
            for streams in options.streams:
                for path, request in requests_of(prompt, options.new).items():
                    note(server.run(path, request, streams, *window))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS, nargs="+")
    sizes = [1, 8, 32, 64, 128, 256]
    parser.add_argument(
        "--streams", type=lambda text: list(map(int, text.split(","))), default=sizes
    )
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--client", type=Path, default=ROOT / "build/release/bench_stream_client")
    parser.add_argument("--backends", type=Path, help="default: the installed package's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.client.is_file():
        parser.error(f"{options.client} does not exist; build it as the head of this file says")
    runs = [run for model in options.model for run in measured(model, options)]
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
