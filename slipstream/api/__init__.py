# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Offline and in-process generation: :class:`LLM` over the same Executor that serves Triton."""

from slipstream.api.llm import LLM
from slipstream.api.outputs import Chunk, Completion, RequestOutput, TokenLogprobs
from slipstream.api.sampling_params import SamplingParams

__all__ = ["LLM", "Chunk", "Completion", "RequestOutput", "SamplingParams", "TokenLogprobs"]
