# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Real tritonservers for the end-to-end tests: repositories and processes, two at a time."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from e2e_client import stub
from e2e_metrics import Metrics, parse_metrics, wait_for
from transformers import AutoTokenizer
from tritonclient.grpc import service_pb2

from slipstream.config import SlipstreamConfig, load_config, role_parameters
from slipstream.demo import demo_model_path
from slipstream.repository import build_repository, resolve
from slipstream.repository.render import (
    LLM_NAME,
    NAMING,
    RepositorySettings,
    render_role,
    render_steps,
    to_text,
)
from slipstream.server import (
    Ports,
    PortTakenError,
    ServerOptions,
    TritonProcess,
    backend_directory,
    choose_ports,
    find_tritonserver,
)
from slipstream.tokenization import export_token_table

HOST = "127.0.0.1"
VOCAB = 2560  # of the demo tokenizer
END_ID = 2
MAX_SERVERS = 2
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


@cache
def tokenizer() -> Any:
    """The demo model's tokenizer."""
    return AutoTokenizer.from_pretrained(demo_model_path())


def decode(ids: Sequence[int]) -> str:
    """What transformers makes of the ids, special tokens left out."""
    return str(tokenizer().decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Variant:
    """One more `llm` in a repository: options that differ from the base.

    Named X, it comes with both kinds of ensembles, X_ensemble (fused) and X_steps, unless it has
    no use for them.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scripted: Mapping[str, Any] = field(default_factory=dict)
    ensemble: bool = True
    at_start: bool = True


@dataclass(frozen=True)
class Recipe:
    """What a server serves."""

    key: str
    overrides: Mapping[str, Any]
    variants: tuple[Variant, ...] = ()
    scripted: Mapping[str, Any] | None = None  # None: the real worker
    models: tuple[str, ...] = ("preprocessing", "llm", "postprocessing", "ensemble", "steps")
    control: str = "explicit"  # Triton's mode of model control


class Server:
    """A running tritonserver with what tests ask of it."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.repository = folder / "models"
        write_repository(recipe, self.repository)
        loaded = list(recipe.models)
        for variant in recipe.variants:
            if variant.at_start:
                loaded += [variant.name, *ensembles_of(variant)]
        self.process = TritonProcess(
            find_tritonserver(),
            ServerOptions(
                repository=self.repository,
                backends=backend_directory(),
                host=HOST,
                ports=choose_ports(HOST),
                log=folder / "server.log",
                extra=(
                    f"--model-control-mode={recipe.control}",
                    "--metrics-interval-ms=100",
                    *(f"--load-model={name}" for name in loaded if recipe.control == "explicit"),
                ),
            ),
        )
        try:
            self._wait_ready(loaded)
            # tritonserver opens the port of its metrics last.
            wait_for(self._has_metrics, 10, "the metrics answer")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_ready(self, models: Sequence[str]) -> None:
        while True:
            try:
                self.process.wait_ready(models, START_TIMEOUT_S)
                return
            except PortTakenError:  # by tests that run beside these
                self.process.restart(choose_ports(HOST))

    @property
    def ports(self) -> Ports:
        return self.process.ports

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.ports.grpc}"

    @property
    def http(self) -> str:
        return f"{HOST}:{self.ports.http}"

    def _has_metrics(self) -> bool:
        try:
            return bool(self.metrics())
        except urllib.error.URLError:
            return False

    def metrics(self) -> Metrics:
        """The samples at /metrics now."""
        url = f"http://{HOST}:{self.ports.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            return parse_metrics(response.read().decode())

    def settled_metrics(self, llm: str) -> Metrics:
        """The samples, of which none that an `llm` reports is older than this call.

        They are refreshed one after the other, their time among them. The refresh of a time has
        ended when another one is shown.
        """

        def shown() -> float:
            name = "nv_trt_llm_general_metrics"
            return self.metrics().value(name, model=llm, general_type="timestamp")

        called = time.time() * 1e6
        wait_for(lambda: shown() >= called, 10, f"the metrics of {llm} are refreshed")
        began = shown()
        wait_for(lambda: shown() != began, 10, f"the metrics of {llm} have been refreshed")
        return self.metrics()

    def settled(self, name: str, llm: str, **labels: str) -> float:
        """One of those samples."""
        return self.settled_metrics(llm).value(name, model=llm, **labels)

    def is_ready(self, model: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/models/{model}/ready", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False

    def state_of(self, model: str) -> tuple[str, str]:
        """State and reason, as the repository's index has them: of the version that is not
        unavailable, where it still lists versions that were unloaded."""
        request = service_pb2.RepositoryIndexRequest()
        index = stub(self.grpc).RepositoryIndex(request, timeout=10)
        versions = [m for m in index.models if m.name == model]
        entry = next((m for m in versions if m.state != "UNAVAILABLE"), versions[-1])
        return entry.state, entry.reason

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are children of this server."""
        children = psutil.Process(self.process.pid).children()
        return [c for c in children if "slipstream.worker" in c.cmdline()]

    def stop(self) -> int:
        return self.process.stop()


def ensembles_of(variant: Variant) -> list[str]:
    return [f"{variant.name}_ensemble", f"{variant.name}_steps"] if variant.ensemble else []


def write_repository(recipe: Recipe, folder: Path) -> None:
    """The generated repository, and the variants beside it."""
    folder.mkdir(parents=True)
    config = _config(recipe, {}, {}, folder)
    build_repository(config, folder)
    _write_ensembles(folder, config, NAMING[config.repository.naming]["llm"], "")
    for variant in recipe.variants:
        config = _config(recipe, variant.overrides, variant.scripted, folder)
        settings = RepositorySettings.of(config)
        message = render_role("llm", settings, role_parameters(config, "llm"))
        _write(folder, variant.name, message)
        if variant.ensemble:
            _write_ensembles(folder, config, variant.name, f"{variant.name}_")


def _write_ensembles(folder: Path, config: SlipstreamConfig, llm: str, prefix: str) -> None:
    """Both kinds of ensembles of a model of role `llm`, those that are not there yet."""
    settings = RepositorySettings.of(config)
    fused = render_role("pipeline", settings, role_parameters(config, "pipeline"))
    fused.parameters[LLM_NAME].string_value = llm
    steps = render_steps(settings)
    for step in steps.ensemble_scheduling.step:
        if step.model_name == NAMING[settings.naming]["llm"]:
            step.model_name = llm
    for name, message in ((f"{prefix}ensemble", fused), (f"{prefix}steps", steps)):
        if not (folder / name).exists():
            _write(folder, name, message)


def _write(folder: Path, name: str, message: Any) -> None:
    message.name = name
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(to_text(message), encoding="utf-8")


def _config(
    recipe: Recipe, overrides: Mapping[str, Any], scripted: Mapping[str, Any], folder: Path
) -> SlipstreamConfig:
    values = dict(recipe.overrides) | dict(overrides)
    if recipe.scripted is not None:
        table = folder.parent / "token_table"
        if not table.exists():
            table.write_bytes(export_token_table(tokenizer()))
        values.setdefault("worker", "scripted")
        if values["worker"] == "scripted":
            base = {"vocab_size": VOCAB, "end_ids": [END_ID], "token_table_file": str(table)}
            values["scripted"] = base | dict(recipe.scripted) | dict(scripted)
        values["tokenizer"] = str(demo_model_path())
    return resolve(load_config(None, values))


class ServerPool:
    """Starts servers when they are asked for; keeps the last two running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Server] = {}
        self._starts = 0

    def get(self, recipe: Recipe) -> Server:
        server = self._running.pop(recipe.key, None)
        if server is None:
            self._make_room()
            server = self._start(recipe)
        self._running[recipe.key] = server  # the last one is the one used last
        return server

    @contextmanager
    def own(self, recipe: Recipe) -> Iterator[Server]:
        """A server for one test alone, which may do with it what it likes."""
        self._make_room()
        server = self._start(recipe)
        try:
            yield server
        finally:
            server.stop()

    def close(self) -> None:
        with ExitStack() as stack:  # one that does not stop well must not keep the others alive
            for _ in self._running:
                stack.callback(self._stop_oldest)

    def _start(self, recipe: Recipe) -> Server:
        self._starts += 1
        folder = self._folder / f"{recipe.key}-{self._starts}"
        folder.mkdir()
        return Server(recipe, folder)

    def _make_room(self) -> None:
        while len(self._running) >= MAX_SERVERS:
            self._stop_oldest()

    def _stop_oldest(self) -> None:
        server = self._running.pop(next(iter(self._running)))
        start = time.monotonic()
        code = server.stop()
        took = time.monotonic() - start
        # An idle server that does not stop soon holds a request that nobody waits for.
        assert (code, took < STOP_TIMEOUT_S) == (0, True), (
            f"exit code {code} after {took:.1f} s\n" + "\n".join(server.process.tail(60))
        )
