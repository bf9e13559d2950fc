# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every option of Slipstream, once: sections of frozen, strict models.

A field's metadata says where its value goes: ``roles`` are the backend roles whose parameters carry
it in ``config.pbtxt``. Option names are unique over all sections, so that a flag or a parameter
needs no section name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["llm", "tokenize", "detokenize", "pipeline"]

LLM: tuple[Role, ...] = ("llm",)
TOKENIZE: tuple[Role, ...] = ("tokenize", "pipeline")
ALL_ROLES: tuple[Role, ...] = ("llm", "tokenize", "detokenize", "pipeline")


def _option(default: Any, description: str, *, roles: tuple[Role, ...] = (), **limits: Any) -> Any:
    extra: dict[str, Any] = {"roles": list(roles)}
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    """A group of options; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """The checkpoint and how it is loaded."""

    model: str = _option("", "Hugging Face directory or hub id; empty: the demo model", roles=LLM)
    tokenizer: str = _option(
        "",
        "tokenizer directory; empty: the model's",
        roles=ALL_ROLES,
    )
    revision: str = _option("", "revision of a hub id", roles=ALL_ROLES)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto", "type of weights, and of the KV cache if kv_cache_dtype is auto", roles=LLM
    )
    device: str = _option(
        "auto", "auto, cpu, cuda or cuda:N", roles=LLM, pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    load_format: Literal["auto", "safetensors", "dummy"] = _option(
        "auto",
        "auto: safetensors, else pytorch_model.bin; safetensors: no other; dummy: random weights",
        roles=LLM,
    )
    model_impl: Literal["auto", "native", "transformers"] = _option(
        "auto",
        "whose forward runs: Slipstream's, or transformers' over the paged cache; auto: "
        "Slipstream's where it serves the model",
        roles=LLM,
    )
    trust_remote_code: bool = _option(
        False, "run Python code that comes with the checkpoint", roles=ALL_ROLES
    )
    max_seq_len: int = _option(
        0, "prompt and generated tokens together; 0: the checkpoint's limit", roles=LLM, ge=0
    )
    num_threads: int = _option(
        0, "CPU threads of the worker; 0: automatic", roles=LLM, ge=0, le=4096
    )
    cuda_graphs: bool = _option(
        True, "replay decode steps on a GPU from graphs captured at start", roles=LLM
    )
    attention_backend: Literal["auto", "triton", "flashinfer", "sdpa"] = _option(
        "auto",
        "whose attention kernels run: Slipstream's on a GPU (triton), FlashInfer's, or torch's; "
        "auto: triton where it serves the model, else sdpa",
        roles=LLM,
    )
    deterministic: bool = _option(
        False,
        "on a CPU: a request's tokens and log probabilities are the same to the bit, whatever runs "
        "beside it",
        roles=LLM,
    )
    seed: int = _option(0, "of dummy weights", roles=LLM, ge=0, lt=1 << 63)


class SchedulerSection(Section):
    """What runs together, and what waits."""

    max_num_seqs: int = _option(
        0,
        "sequences that run at once; 0: 64 on a CPU, 256 on a GPU, and no more than max_num_tokens",
        roles=LLM,
        ge=0,
        le=65536,
    )
    max_num_tokens: int = _option(
        0,
        "token budget of one step; 0: 2048, or 8192 on a GPU of 64 GiB and more, and no fewer than "
        "max_num_seqs",
        roles=LLM,
        ge=0,
    )
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = _option(
        "guaranteed_no_evict", "when a waiting sequence may start", roles=LLM
    )
    enable_chunked_prefill: bool = _option(
        True, "long prompts are computed in pieces, between decode steps", roles=LLM
    )
    pipeline_depth: int = _option(2, "steps in flight", roles=LLM, ge=1, le=2)
    max_queue_requests: int = _option(
        1024, "waiting sequences, more are rejected; 0: unlimited", roles=(*LLM, *TOKENIZE), ge=0
    )
    max_queue_tokens: int = _option(
        0, "prompt tokens of the waiting sequences; 0: unlimited", roles=LLM, ge=0
    )
    max_queue_bytes: int = _option(
        256 << 20,
        "inputs of the requests that wait to be tokenized; 0: unlimited",
        roles=TOKENIZE,
        ge=0,
    )
    priority_ageing_ms: int = _option(
        5000, "waiting so long raises a request by one class; 0: never", roles=LLM, ge=0
    )
    max_logprobs: int = _option(64, "most alternatives a request may ask for", roles=LLM, ge=0)
    wrap_out_of_vocab_ids: bool = _option(
        False, "prompt ids outside the vocabulary are wrapped around, not refused", roles=LLM
    )


class KvCacheSection(Section):
    """The key-value cache. Of the tokens, bytes and fraction that are given the smallest holds."""

    tokens_per_block: int = _option(32, "tokens of one block", roles=LLM, ge=1, le=1024)
    kv_cache_dtype: Literal["auto", "fp8"] = _option(
        "auto", "auto: as the model computes; fp8: e4m3, half of 16 bits", roles=LLM
    )
    kv_cache_tokens: int = _option(
        0, "size in tokens; 0: not given. Of several sizes the smallest holds", roles=LLM, ge=0
    )
    kv_cache_bytes: int = _option(0, "size in bytes, at most; 0: not given", roles=LLM, ge=0)
    kv_cache_fraction: float = _option(
        0.0,
        "size as a fraction of the memory free after loading, at most; 0: not given, and 0.9 on a "
        "GPU, 0.25 on a CPU if no other size is",
        roles=LLM,
        ge=0.0,
        le=1.0,
    )
    enable_prefix_reuse: bool = _option(
        True, "requests share the cached blocks of equal prefixes", roles=LLM
    )
    enable_partial_reuse: bool = _option(
        True, "the leading tokens of a block can be reused, by copy", roles=LLM
    )


class WorkerSection(Section):
    """The process that runs the model, and how it is supervised."""

    worker: Literal["process", "scripted"] = _option(
        "process", "scripted: a test double inside the backend", roles=LLM
    )
    scripted: dict[str, Any] = _option({}, "what the scripted worker does", roles=LLM)
    python_executable: str = _option(
        "", "Python for worker and tokenizer; empty: the server's environment", roles=ALL_ROLES
    )
    watchdog_ms: int = _option(
        60000, "a step without an answer for so long: the worker hangs; 0: off", roles=LLM, ge=0
    )
    max_restarts: int = _option(3, "restarts in a row before giving up", roles=LLM, ge=0)
    restart_backoff_ms: int = _option(
        200, "pause before a restart, doubled each time", roles=LLM, ge=0
    )
    drain_timeout_ms: int = _option(
        30000,
        "how long running requests may finish when the model unloads or the server ends",
        roles=LLM,
        ge=0,
    )
    exit_on_fatal: bool | None = _option(
        None,
        "end the server process when the worker cannot be brought back; not set: if the server "
        "cannot take the model out of its readiness, and no other model of role llm lives in it",
        roles=LLM,
    )


class TextSection(Section):
    """Tokenizing and the text of responses."""

    tokenizer_processes: int = _option(
        1, "processes that tokenize prompts", roles=TOKENIZE, ge=1, le=64
    )
    add_special_tokens: bool = _option(
        True, "as the tokenizer does by default, e.g. a leading <s>", roles=TOKENIZE
    )
    allow_special: bool | None = _option(
        None,
        "text that spells a special token becomes that token; not set: in prompts yes, in messages "
        "no",
        roles=TOKENIZE,
    )
    skip_special_tokens: bool = _option(
        True,
        "leave special tokens out of text, where a request does not say",
        roles=("llm", "detokenize"),
    )
    exclude_input_in_output: bool = _option(
        False, "responses that are not streamed leave out the prompt", roles=LLM
    )
    cancellation_check_period_ms: int = _option(
        25, "how often cancelled requests are looked for", roles=LLM, ge=1, le=60000
    )
    stats_check_period_ms: int = _option(
        100, "how often metrics are refreshed", roles=LLM, ge=1, le=600000
    )
    flow_window: int = _option(
        32, "undelivered responses of one stream through an ensemble of steps", roles=LLM, ge=1
    )


class RepositorySection(Section):
    """The model repository that is generated."""

    naming: Literal["slipstream", "tensorrt_llm"] = _option(
        "slipstream", "tensorrt_llm: names for drop-in use"
    )
    ensemble: Literal["fused", "steps"] = _option(
        "fused", "one model of role pipeline, or steps wired by Triton, slower, to be changed"
    )
    max_batch_size: int = _option(64, "rows of one request", ge=1, le=4096)
    decoupled: bool = _option(True, "streaming, and several responses per request")
    preprocessing_instances: int = _option(2, "prompts tokenized at once", ge=1, le=256)
    max_queue_delay_us: int = _option(
        0, "Triton's batching delay before preprocessing; 0: none", ge=0
    )
    accumulate_tokens: bool = _option(
        False, "of tensorrt_llm_bls: each streamed response holds the whole text so far"
    )
    logits_datatype: Literal["FP32", "FP16"] = _option("FP32", "type of returned logits")
    encoder_input_features_data_type: Literal["FP16", "FP32", "BF16"] = _option(
        "FP16", "declared type of encoder features"
    )
    prompt_embedding_table_data_type: Literal["FP16", "FP32", "BF16"] = _option(
        "FP16", "declared type of prompt tables"
    )


class ServerSection(Section):
    """The tritonserver process."""

    host: str = _option("127.0.0.1", "address to listen on")
    http_port: int = _option(0, "0: 8000, or any free port", ge=0, le=65535)
    grpc_port: int = _option(0, "0: 8001, or any free port", ge=0, le=65535)
    metrics_port: int = _option(0, "0: 8002, or any free port", ge=0, le=65535)
    tritonserver: str = _option("", "path of the server binary; empty: found automatically")
    start_timeout_s: int = _option(1800, "give up if not ready by then", ge=1)
    exit_timeout_s: int = _option(35, "how long the server may drain", ge=0)
    log_verbose: int = _option(0, "verbosity of Triton's log", ge=0, le=9)


class SlipstreamConfig(Section):
    """The whole configuration."""

    model: ModelSection = ModelSection()
    scheduler: SchedulerSection = SchedulerSection()
    kv_cache: KvCacheSection = KvCacheSection()
    worker: WorkerSection = WorkerSection()
    text: TextSection = TextSection()
    repository: RepositorySection = RepositorySection()
    server: ServerSection = ServerSection()
