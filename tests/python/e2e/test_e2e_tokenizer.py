# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Text is that of the configured tokenizer, whatever lies beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from e2e_client import ask, ending, joined_text, question
from e2e_recipes import DEMO
from e2e_server import Recipe, Server, ServerPool, Variant

from slipstream.demo import demo_model_path

PROMPT = "Once upon a time"
COUNT = 40
STOP = slice(20, 26)  # of the text without a stop string


def weights(folder: Path) -> Path:
    """A copy of the demo checkpoint without its tokenizer."""
    shutil.copytree(demo_model_path(), folder, ignore=shutil.ignore_patterns("tokenizer*"))
    return folder


def with_another_tokenizer(folder: Path) -> Path:
    """The demo checkpoint with a tokenizer whose every other token is spelled backwards."""
    weights(folder)
    for file in demo_model_path().glob("tokenizer*"):
        shutil.copy(file, folder)
    file = folder / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    assert len(vocab) > 1000
    names = sorted(vocab, key=vocab.get)
    for this, other in zip(names[300::2], names[301::2], strict=False):
        vocab[this], vocab[other] = vocab[other], vocab[this]
    file.write_text(json.dumps(tokenizer))
    return folder


def texts(server: Server, ensemble: str) -> list[tuple[str, str]]:
    """Texts and why they ended: whole, streamed, and cut by a stop string."""
    asked = {"return_finish_reason": True, "exclude_input_in_output": True}
    whole = ask(server.grpc, ensemble, question(PROMPT, COUNT, **asked))
    stop = joined_text(whole)[STOP]
    answers = [
        whole,
        ask(server.grpc, ensemble, question(PROMPT, COUNT, stream=True, **asked)),
        ask(server.grpc, ensemble, question(PROMPT, COUNT, stop_words=[stop], **asked)),
    ]
    return [(joined_text(replies), ending(replies)) for replies in answers]


def test_the_configured_tokenizer_makes_the_text(
    demo: Server, servers: ServerPool, tmp_path: Path
) -> None:
    expected = texts(demo, "ensemble")
    whole, streamed, cut = (text for text, _ in expected)
    assert whole == streamed
    assert len(whole) > 40
    assert cut == whole[: whole.index(whole[STOP])]
    assert [reason for _, reason in expected] == ["length", "length", "stop_sequence"]
    named = {"tokenizer": str(demo_model_path())}
    recipe = Recipe(
        key="apart",
        overrides=DEMO.overrides | named | {"model": str(weights(tmp_path / "bare"))},
        variants=(Variant("other", {"model": str(with_another_tokenizer(tmp_path / "other"))}),),
    )
    with servers.own(recipe) as server:
        for ensemble in ("ensemble", "steps", "other_ensemble", "other_steps"):
            assert texts(server, ensemble) == expected, ensemble
