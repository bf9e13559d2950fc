# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a caller of the Python API may ask of one request."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slipstream.errors import RequestError


class SamplingParams(BaseModel):
    """How to generate. Ranges are checked when the request is submitted.

    Greedy unless one of ``temperature`` (> 0), ``top_k`` (> 1), ``top_p`` or ``min_p`` is given.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; None means greedy, or 1.0 when another sampling field is given.
        top_k: sample among the k most likely; 0 is no limit.
        top_p: sample among the most likely that together have this probability.
        min_p: drop tokens less likely than this fraction of the most likely one.
        seed: same seed, same tokens, whatever else runs; None draws fresh entropy.
        stop: strings that end the text; they are cut off unless ``include_stop``.
        stop_token_ids: single tokens that end generation, besides the model's own.
        ignore_eos: do not stop at the model's own end tokens.
        n: independent samples.
        logprobs: None, or how many of the most likely tokens to report besides the chosen one.
        timeout_s: the request ends then, queued or running; 0 is never.
        cache_salt: requests reuse each other's KV only with equal salts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = 128
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    skip_special_tokens: bool = True
    priority: int = 0
    timeout_s: float = 0.0
    cache_salt: int = 0

    def __init__(self, **fields: Any) -> None:
        """Raises RequestError naming every field that is unknown or of the wrong type."""
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RequestError("; ".join(faults)) from None

    def resolved_temperature(self) -> float:
        """The temperature to sample with; 0 is greedy."""
        if self.top_k == 1:
            return 0.0
        if self.temperature is not None:
            return self.temperature
        samples = self.top_k > 1 or self.top_p < 1.0 or self.min_p > 0.0
        return 1.0 if samples else 0.0

    def request_fields(self, model_end_ids: list[int]) -> dict[str, Any]:
        """The keyword arguments of the Executor's ``submit`` that these parameters mean."""
        end_ids = [] if self.ignore_eos else list(model_end_ids)
        fields: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.resolved_temperature(),
            "end_ids": end_ids + list(self.stop_token_ids),
            "stop_strings": list(self.stop),
            "num_return_sequences": self.n,
            "num_logprobs": -1 if self.logprobs is None else self.logprobs,
            "logit_bias": list(self.logit_bias.items()),
        }
        same = (
            "top_k top_p min_p repetition_penalty presence_penalty frequency_penalty min_tokens "
            "include_stop skip_special_tokens priority cache_salt timeout_s"
        )
        fields |= {name: getattr(self, name) for name in same.split()}
        if self.seed is not None:
            fields["seed"] = self.seed
        return fields
