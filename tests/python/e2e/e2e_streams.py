# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Many streams at once, each read by a thread of its own, and what they amount to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from e2e_client import Reply, Stream, ending, joined_ids, joined_text, prompt, question
from e2e_metrics import wait_for
from e2e_server import Server, tokenizer

TEXTS = (
    "Once upon a time there was a",
    "The fox and the owl",
    "Sort these words: pear, apple, fig",
    "A",
    "One day a small bird",
    "Copy these words: fox owl hen",
    "Numbers from smallest to largest:",
    "In the forest",
)
COUNT = 64
LOG_PROBS = ("output_log_probs", "top_log_probs")


@dataclass(frozen=True)
class Job:
    """One request, and the model that it goes to."""

    model: str
    fields: dict[str, Any]


def kinds(stop: str, seed: int) -> list[dict[str, Any]]:
    """Of each kind of request its fields, by their names on `ensemble`."""
    return [
        {},
        {"temperature": 1.1, "seed": seed},
        {"stop_words": ["unheard of", stop]},
        {"return_log_probs": True},
        {"num_return_sequences": 2, "temperature": 0.9, "seed": seed},
        {
            "return_log_probs": True,
            "num_logprobs": 3,
            "temperature": 1.2,
            "top_k": 20,
            "seed": seed,
        },
        {"repetition_penalty": 1.3, "presence_penalty": 0.4},
        {"stop_words": [stop], "top_p": 0.8, "temperature": 1.1, "seed": seed},
    ]


_ON_LLM = {"stop_words": "stop_strings", "top_k": "runtime_top_k", "top_p": "runtime_top_p"}


def make_job(llm: str, on_llm: bool, text: str, fields: dict[str, Any]) -> Job:
    """A stream of `llm`, or of the fused ensemble over it."""
    fields = fields | {"end_id": -1, "return_finish_reason": True, "return_usage": True}
    if not on_llm:
        ensemble = "ensemble" if llm == "llm" else f"{llm}_ensemble"
        return Job(ensemble, question(text, COUNT, stream=True, **fields))
    fields = {_ON_LLM.get(name, name): value for name, value in fields.items()}
    ids = tokenizer()(text)["input_ids"]
    return Job(llm, prompt(ids, COUNT, streaming=True, return_text=True, **fields))


def mixed_jobs(stops: Sequence[str], llm: str = "llm") -> list[Job]:
    """64 streams: every kind with every text, half of them past the ensemble."""
    return [
        make_job(llm, (number + turn) % 2 == 1, text, fields)
        for turn in range(len(TEXTS))
        for number, fields in enumerate(kinds(stops[turn], 100 + turn))
        for text in [TEXTS[turn]]
    ]


class Follower(threading.Thread):
    """Reads one request's stream, and notes when each response came."""

    def __init__(self, server: Server, job: Job) -> None:
        super().__init__(daemon=True)
        self.replies: list[Reply] = []
        self.times: list[float] = []
        self.late: list[Reply] = []  # what came after the final response
        self._server, self._job = server, job
        self.start()

    def run(self) -> None:
        with Stream(self._server.grpc) as stream:
            stream.send(self._job.model, self._job.fields)
            while not (self.replies and self.replies[-1].final):
                self.replies.append(stream.next())
                self.times.append(time.monotonic())
            self.late = stream.end()

    def is_in_the_middle(self) -> bool:
        return bool(self.replies) and not self.replies[-1].final

    def longest_pause(self) -> float:
        """The most seconds between two responses."""
        return float(np.diff(self.times).max(initial=0))


def follow(
    server: Server, jobs: Sequence[Job], disturb: Callable[[list[Follower]], None] | None = None
) -> list[Follower]:
    """All jobs at once, to their ends."""
    followers = [Follower(server, job) for job in jobs]
    if disturb is not None:
        disturb(followers)
    for follower in followers:
        follower.join(120)
        assert not follower.is_alive()
    return followers


def wait_for_the_middle(followers: Sequence[Follower], num_replies: int) -> list[Follower]:
    """Waits until so many responses have come in all; the streams that are in their middle."""
    wait_for(lambda: sum(len(f.replies) for f in followers) >= num_replies, 60, "tokens come")
    return [follower for follower in followers if follower.is_in_the_middle()]


@dataclass(frozen=True)
class Outcome:
    """What became of one sequence of a request."""

    text: str
    ids: list[int]
    finish_reason: str
    stop_reason: str
    completion_tokens: int


def outcomes(replies: Sequence[Reply]) -> list[Outcome]:
    """Of each sequence of a request, in the order of their numbers."""
    by_index: dict[int, list[Reply]] = {}
    for reply in replies:
        assert not reply.error
        index = reply.one("sequence_index") if "sequence_index" in reply.outputs else 0
        if reply.outputs:
            by_index.setdefault(index, []).append(reply)
    return [
        Outcome(
            joined_text(mine),
            joined_ids(mine),
            ending(mine),
            ending(mine, "stop_reason"),
            mine[-1].one("completion_tokens"),
        )
        for _, mine in sorted(by_index.items())
    ]


def log_probs(replies: Sequence[Reply], name: str = "output_log_probs") -> np.ndarray:
    """All values of one output; empty if there are none."""
    found = [r.outputs[name].reshape(-1) for r in replies if name in r.outputs]
    return np.concatenate(found) if found else np.empty(0, np.float32)
