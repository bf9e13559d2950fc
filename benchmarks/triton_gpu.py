# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A model on a GPU through tritonserver, beside the same Executor and worker in this process.

    cmake --preset release -DSLIPSTREAM_BUILD_BENCHMARKS=ON && cmake --build --preset release
    .venv/bin/python benchmarks/triton_gpu.py qwen3-0.6b [--streams 1,8,64,256]

N clients, each sending its next request when the last one has ended: a prompt of ``--prompt``
tokens, ``--new`` new ones, streamed, no reuse of prefixes, random weights. Tokens per second are
counted in a window after a warm-up, by the Executor; the time to a first token by the client, from
the moment when it sent the request. In this process the client is one thread on the Executor's
events. Paths through tritonserver: `llm` with token ids, and `ensemble` with text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
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

MAX_NUM_SEQS = 256
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
    first_p50_ms: float
    first_p99_ms: float
    requests: int


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


def first_token_run(
    path: str, streams: int, tokens: float, seconds: float, firsts: list[float]
) -> Run:
    ordered = sorted(firsts)
    p99 = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
    median = statistics.median(ordered)
    return Run(path, streams, tokens / seconds, median * 1e3, p99 * 1e3, len(ordered))


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
        sent: dict[int, float] = {}
        firsts: list[float] = []
        next_ticket = iter(range(1, 1 << 60))

        def submit() -> None:
            ticket = next(next_ticket)
            sent[ticket] = time.monotonic()
            self._executor.submit(ticket, prompt=prompt, streaming=True, return_text=True, **fields)

        for _ in range(streams):
            submit()
        begin = time.monotonic() + warm_up
        waiting_for_first = set(sent)
        counted: float | None = None
        counted_at = tokens = elapsed = 0.0
        running = streams
        while running:
            events = self._executor.wait_events(0.05)
            now = time.monotonic()
            if counted is None and now >= begin:
                counted, counted_at = self._generated(), now
            ending = now >= begin + seconds
            if ending and not elapsed and counted is not None:
                tokens, elapsed = self._generated() - counted, now - counted_at
            for event in events:
                ticket = event["ticket"]
                if ticket in waiting_for_first:
                    waiting_for_first.discard(ticket)
                    if sent[ticket] >= begin and not ending:
                        firsts.append(now - sent[ticket])
                if event["request_done"]:
                    assert event["reason"] == "length", event
                    if ending:
                        running -= 1
                        continue
                    submit()
                    waiting_for_first.add(max(sent))
        return first_token_run("in process", streams, tokens, elapsed, firsts)

    def _generated(self) -> float:
        return float(self._executor.metrics()["generated_tokens"])

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
        for line in process.stdout:
            at[line.split()[0]] = (self._generated(), time.monotonic())
        assert process.wait() == 0
        tokens = at["end"][0] - at["begin"][0]
        elapsed = at["end"][1] - at["begin"][1]
        firsts = first_tokens(np.fromfile(record, np.uint64), at["begin"][1], at["end"][1])
        return first_token_run(path, streams, tokens, elapsed, firsts)

    def _generated(self) -> float:
        with urllib.request.urlopen(f"http://{HOST}:{self._ports.metrics}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith("slipstream_generated_tokens_total"):
                    return float(line.split()[-1])
        return 0.0


def first_tokens(records: np.ndarray, begin: float, end: float) -> list[float]:
    """Seconds from each request's sending, which follows the final response of the one before, to
    its first response, of requests sent and answered between the two times."""
    found: list[float] = []
    sent: dict[int, float] = {}
    for record in np.sort(records).tolist():
        now, stream, final = (record >> 16) / 1e9, (record >> 1) & 0x7FFF, record & 1
        if final:
            sent[stream] = now
        elif stream in sent:
            since = sent.pop(stream)
            if since >= begin and now <= end:
                found.append(now - since)
    return found


def requests_of(prompt: list[int], new: int) -> dict[str, bytes]:
    """A serialized request for each path through tritonserver."""
    common = [tensor("return_perf_metrics", [False], "BOOL")]
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
        "llm": request_data("llm", ids + common),
        "ensemble": request_data("ensemble", words + common),
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
            print(
                f"{model} {run.path:10} {run.streams:4d} streams: {run.tokens_per_s:9,.0f} "
                f"tokens/s, first token p50 {run.first_p50_ms:7.1f} p99 {run.first_p99_ms:7.1f} "
                f"ms ({run.requests} requests)",
                flush=True,
            )

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
