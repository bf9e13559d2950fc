# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Generation in this process, through the same Executor and workers that serve Triton."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

from slipstream import _core
from slipstream.api.outputs import Chunk, Completion, RequestOutput, TokenLogprobs
from slipstream.api.sampling_params import SamplingParams
from slipstream.errors import GenerationError, RequestError, UnavailableError

Prompt = str | Sequence[int]
_POLL_S = 0.2


class LLM:
    """A loaded model. Without a tokenizer, prompts are token ids and texts are empty.

    Args:
        model: a Hugging Face directory or hub id.
        tokenizer: likewise; default the model's own, if it has one.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        max_num_seqs: sequences that run at once; ``max_num_tokens``: token budget of one step. A 0
            becomes what suits the device: 64 and 2,048 on a CPU, 256 and 2,048 or 8,192 on a GPU.
        max_seq_len: prompt + generated; 0 is the checkpoint's own limit.
        kv_cache_dtype: ``auto``, the model's, or ``fp8``: e4m3, of half the size.
        kv_cache_tokens: size of the KV cache; ``kv_cache_fraction``: the same as a fraction of the
            free memory. The smaller of the two; if both are 0, 0.9 of a GPU's or 0.25 of a host's.
        model_impl: ``native``, ``transformers``, or ``auto``: native where it serves the model.
        load_format: ``auto``, ``safetensors``, or ``dummy``: random weights.
        cuda_graphs: replay decode steps on a GPU from graphs that are captured at start.
        attention_backend: ``triton``, Slipstream's kernels for GPUs; ``flashinfer``, FlashInfer's,
            which has to be installed; ``sdpa``, torch's; or ``auto``: triton where it serves the
            model, else sdpa.
        deterministic: on a CPU, tokens and log probabilities of a request are the same to the bit
            whatever runs beside it, however its prompt is cut and however much of it is reused.
        policy: ``guaranteed_no_evict`` or ``max_utilization``.
        progress: called with (fraction, what) while the model loads.

    Raises:
        RuntimeError: the model cannot be loaded; the message is the worker's.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_num_seqs: int = 0,
        max_num_tokens: int = 0,
        max_seq_len: int = 0,
        tokens_per_block: int = 32,
        kv_cache_dtype: str = "auto",
        kv_cache_tokens: int = 0,
        kv_cache_fraction: float = 0.0,
        policy: str = "guaranteed_no_evict",
        enable_prefix_reuse: bool = True,
        model_impl: str = "auto",
        load_format: str = "auto",
        cuda_graphs: bool = True,
        attention_backend: str = "auto",
        deterministic: bool = False,
        trust_remote_code: bool = False,
        num_threads: int = 0,
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        config = _core.ExecutorConfig()
        config.max_num_seqs = max_num_seqs
        config.max_num_tokens = max_num_tokens
        config.max_queue_requests = 0
        config.enable_prefix_reuse = enable_prefix_reuse
        config.policy = getattr(_core.SchedulerPolicy, policy.upper())
        worker = {
            "model": str(model),
            "tokenizer": str(tokenizer or ""),
            "dtype": dtype,
            "device": device,
            "tokens_per_block": tokens_per_block,
            "max_num_seqs": max_num_seqs,
            "max_num_tokens": max_num_tokens,
            "max_seq_len": max_seq_len,
            "kv_cache_dtype": kv_cache_dtype,
            "kv_cache_tokens": kv_cache_tokens,
            "kv_cache_fraction": kv_cache_fraction,
            "model_impl": model_impl,
            "load_format": load_format,
            "cuda_graphs": cuda_graphs,
            "attention_backend": attention_backend,
            "deterministic": deterministic,
            "trust_remote_code": trust_remote_code,
            "num_threads": num_threads,
        }
        self._executor = _core.Executor.start_process(
            config, sys.executable, json.dumps(worker), progress
        )
        self._tokenizer_source = str(tokenizer or model)
        self._trust_remote_code = trust_remote_code
        self._tokenizer: Any = None
        self._tickets = itertools.count(1)
        self._queues: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._closed = threading.Event()
        self._pump = threading.Thread(target=self._deliver, name="slipstream-events", daemon=True)
        self._pump.start()

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, loaded on first use."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(
                self._tokenizer_source, trust_remote_code=self._trust_remote_code
            )
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt, batched in flight; results in the order of the prompts.

        params: one for all prompts, or one for each.

        Raises:
            RequestError: a prompt or parameter is wrong; nothing was generated for any prompt.
            GenerationError: a request ended with an error.
        """
        batch = _as_batch(prompts)
        each = _params_for(batch, params)
        submitted = self._submit(batch, each, streaming=False)
        try:
            for output, ticket, _ in submitted:
                for event in self._events(ticket):
                    _accumulate(output, event)
        except BaseException:  # an interrupt, too, must not leave requests behind
            for _, ticket, handle in submitted:
                self._executor.cancel(handle)
                self._queues.pop(ticket, None)
            raise
        return [output for output, _, _ in submitted]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Completes one prompt, yielding text as it is generated.

        Closing the iterator early cancels the request.
        """
        [(_, ticket, handle)] = self._submit([prompt], [params or SamplingParams()], streaming=True)
        try:
            for event in self._events(ticket):
                yield _chunk(event)
        finally:
            self._executor.cancel(handle)

    def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None
    ) -> RequestOutput:
        """Answers a conversation, assembled by the tokenizer's own chat template."""
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return self.generate([list(ids)], params)[0]

    def metrics(self) -> dict[str, Any]:
        """Counters and gauges of the Executor, by name."""
        return dict(self._executor.metrics())

    def close(self) -> None:
        """Ends the worker; requests still running are cancelled. Idempotent."""
        self._executor.shutdown(drain=False)
        self._closed.set()
        self._pump.join()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, streaming: bool
    ) -> list[tuple[RequestOutput, int, int]]:
        """All or none. Of each its empty output, its ticket and its handle."""
        outputs, requests = [], []
        for prompt, own in zip(prompts, params, strict=True):
            text = prompt if isinstance(prompt, str) else None
            ids = self._encode(text) if text is not None else _token_ids(prompt)
            outputs.append(RequestOutput(text, ids, [Completion(index) for index in range(own.n)]))
            requests.append(
                {
                    "prompt": ids,
                    "streaming": streaming,
                    "return_text": self._executor.has_text,
                    **own.request_fields(self._executor.worker_info.end_ids),
                }
            )
        tickets = [next(self._tickets) for _ in requests]
        self._queues.update((ticket, queue.SimpleQueue()) for ticket in tickets)
        try:
            handles = self._executor.submit_all(tickets, requests)
        except (ValueError, RuntimeError) as error:
            for ticket in tickets:
                del self._queues[ticket]
            kind = RequestError if isinstance(error, ValueError) else UnavailableError
            raise kind(str(error)) from None
        return list(zip(outputs, tickets, handles, strict=True))

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt: {text!r} is not valid Unicode: {error.reason}") from None
        return list(self.tokenizer(text)["input_ids"])

    def _deliver(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.is_set()  # then the executor has ended, and all events are there
            for event in self._executor.wait_events(0.0 if closed else _POLL_S):
                waiting = self._queues.get(event["ticket"])
                if waiting is not None:
                    waiting.put(event)

    def _events(self, ticket: int) -> Iterator[dict[str, Any]]:
        try:
            while True:
                event = self._queues[ticket].get()
                if event["reason"] == "error":
                    raise GenerationError(event["error"])
                yield event
                if event["request_done"]:
                    return
        finally:
            del self._queues[ticket]


def _as_batch(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items = _listed(prompts)
    single = len(items) > 0 and isinstance(items[0], int)
    return [items] if single else items


def _params_for(
    batch: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(batch)
    each = list(params)
    if len(each) != len(batch):
        raise RequestError(f"params: {len(each)} for {len(batch)} prompts")
    return each


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping):
        return list(value)
    raise RequestError(f"prompt: {value!r} is neither text nor a list of token ids, nor several")


def _token_ids(prompt: Any) -> list[int]:
    ids = _listed(prompt)
    for position, token in enumerate(ids):
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise RequestError(f"prompt: element {position} is {token!r}, not a token id")
    return [int(token) for token in ids]


def _logprobs(event: dict[str, Any]) -> list[TokenLogprobs]:
    width = event["logprob_width"]
    ids, values = event["logprob_ids"], event["logprob_values"]
    return [
        TokenLogprobs(
            ids[at],
            values[at],
            dict(zip(ids[at + 1 : at + width], values[at + 1 : at + width], strict=True)),
        )
        for at in range(0, len(ids), width or 1)
    ]


def _chunk(event: dict[str, Any]) -> Chunk:
    return Chunk(
        event["sequence_index"],
        event["text"],
        event["tokens"],
        _logprobs(event),
        event["reason"],
        event["stop_reason"],
    )


def _accumulate(output: RequestOutput, event: dict[str, Any]) -> None:
    completion = output.completions[event["sequence_index"]]
    completion.text += event["text"]
    completion.token_ids += event["tokens"]
    completion.logprobs += _logprobs(event)
    completion.cumulative_logprob = event["cum_logprob"]
    completion.finish_reason = event["reason"]
    completion.stop_reason = event["stop_reason"]
    output.cached_tokens = max(output.cached_tokens, event["cached_tokens"])
    output.completion_tokens += event["completion_tokens"]
