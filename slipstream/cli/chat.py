# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""``slipstream chat``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli.client import ClientError, StreamingClient, chat_fields
from slipstream.cli.console import err, note, out
from slipstream.cli.flags import with_config
from slipstream.cli.serving import prepare, start, wait_until_ready
from slipstream.config import SlipstreamConfig

_USUAL_URL = "127.0.0.1:8001"


@with_config("model", "scheduler", "kv_cache", "worker", "server")
def chat(
    config: SlipstreamConfig,
    *,
    model: Annotated[
        str | None,
        typer.Argument(help="serve this one; without it: a running server, or the demo model"),
    ] = None,
    url: Annotated[str, typer.Option(help="gRPC address of a running server")] = "",
    prompt: Annotated[str, typer.Option(help="one question; its answer ends the chat")] = "",
    system: Annotated[str, typer.Option(help="system message")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="of one answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy")] = 0.0,
) -> None:
    """Chat in the terminal, streaming. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    with _connect(config, url, starts=bool(config.model.model)) as client:
        messages = [{"role": "system", "content": system}] if system else []
        for question in [prompt] if prompt else _questions():
            messages.append({"role": "user", "content": question})
            try:
                answer = _answer(client, messages, max_tokens, temperature)
            except ClientError as error:
                note(f"error: {error}")
                if prompt:
                    raise typer.Exit(1) from None
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})


def _answer(
    client: StreamingClient, messages: list[dict[str, str]], max_tokens: int, temperature: float
) -> str:
    """Prints one answer as it arrives, and returns it."""
    fields = chat_fields(messages, max_tokens=max_tokens, temperature=temperature)
    text = ""
    responses = client.stream(fields)
    try:
        for response in responses:
            text += response["text_output"]
            out.print(response["text_output"], end="", markup=False)
    except KeyboardInterrupt:
        note(" (stopped)")
    finally:
        responses.close()  # type: ignore[attr-defined]
        out.print()
    return text


def _questions() -> Iterator[str]:
    while True:
        try:
            question = err.input("> ")
        except (EOFError, KeyboardInterrupt):
            return
        if question.strip():
            yield question


@contextmanager
def _connect(config: SlipstreamConfig, url: str, *, starts: bool) -> Iterator[StreamingClient]:
    """A client of the server at ``url``, of the usual one, or of one started for this chat."""
    if url or not starts:
        with StreamingClient(url or _USUAL_URL) as client:
            if client.is_ready():
                yield client
                return
        if url:
            note(f"error: no server with an ensemble answers at {url}")
            raise typer.Exit(1)
    with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
        path = Path(folder)
        prepared = prepare(config, path / "repository", path / "server.log")
        with start(prepared) as process:
            wait_until_ready(process, prepared)
            host = "127.0.0.1" if prepared.options.host == "0.0.0.0" else prepared.options.host
            with StreamingClient(f"{host}:{process.ports.grpc}") as client:
                yield client
