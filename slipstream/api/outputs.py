# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What generation returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities at one generated token, of the model's raw distribution."""

    token_id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """What one step added to one sequence of a streamed request.

    ``finish_reason`` is empty until the sequence's last chunk; then one of ``stop``,
    ``stop_sequence``, ``length``, ``cancelled``, ``deadline``.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str
    stop_reason: str


@dataclass
class Completion:
    """One generated sequence."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str = ""
    stop_reason: str = ""


@dataclass
class RequestOutput:
    """One prompt with everything generated for it. ``cached_tokens``: prompt tokens reused."""

    prompt: str | None
    prompt_token_ids: list[int]
    completions: list[Completion]
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.completions[0].text
