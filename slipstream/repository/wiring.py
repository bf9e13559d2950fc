# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How the ensemble connects its steps: each pair is (the step's tensor, the ensemble's tensor).

Role ``pipeline`` does the same inside the backend (``pipeline_wiring.cc``).

Two choices matter to a client, and two to speed. Stop words go to ``llm`` as strings, so that they
match the text however it was tokenized. ``end_id`` goes to ``llm`` as the client sent it, so that
without one the checkpoint's own end ids apply, of which there can be several.

Every tensor that goes from ``llm`` to ``postprocessing`` costs time in each response: there is one,
``flow``, with the text in it. And ``acceptance_rate`` passes through ``postprocessing`` because
Triton's search for complete responses goes by name and stops at the first output that is not there
yet; with this one coming last, it always stops at once.
"""

from __future__ import annotations

from dataclasses import dataclass

# Required of clients, but declared optional: the step `tokenize` refuses a request without it.
# Triton would run no step and end the request with an empty success.
REFUSED_BY_TOKENIZE = "max_tokens"

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the ensemble: the role that serves it and its maps."""

    role: str
    inputs: Pairs
    outputs: Pairs


def _same(*names: str) -> Pairs:
    return tuple((name, name) for name in names)


_TOKENIZE = Step(
    role="tokenize",
    inputs=(
        ("QUERY", "text_input"),
        ("DECODER_QUERY", "decoder_text_input"),
        ("REQUEST_OUTPUT_LEN", "max_tokens"),
        ("BAD_WORDS_DICT", "bad_words"),
        ("EMBEDDING_BIAS_WORDS", "embedding_bias_words"),
        ("EMBEDDING_BIAS_WEIGHTS", "embedding_bias_weights"),
        ("END_ID", "end_id"),
        ("PAD_ID", "pad_id"),
        ("PROMPT_TABLE_EXTRA_ID", "prompt_table_extra_id"),
        ("MESSAGES", "messages"),
        ("CHAT_OPTIONS", "chat_options"),
    ),
    outputs=(
        ("INPUT_ID", "_input_ids"),
        ("REQUEST_INPUT_LEN", "_input_lengths"),
        ("BAD_WORDS_IDS", "_bad_words_list"),
        ("EMBEDDING_BIAS", "_embedding_bias"),
        ("OUT_PROMPT_TABLE_EXTRA_IDS", "_prompt_table_extra_ids"),
    ),
)

_RESULTS = _same(
    "cum_log_probs",
    "output_log_probs",
    "context_logits",
    "generation_logits",
    "batch_index",
    "sequence_index",
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
    "num_input_tokens",
    "num_output_tokens",
    "top_log_probs",
    "top_log_prob_ids",
    "finish_reason",
    "stop_reason",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
)

_LLM = Step(
    role="llm",
    inputs=(
        ("input_ids", "_input_ids"),
        ("input_lengths", "_input_lengths"),
        ("bad_words_list", "_bad_words_list"),
        ("embedding_bias", "_embedding_bias"),
        ("prompt_table_extra_ids", "_prompt_table_extra_ids"),
        ("request_output_len", "max_tokens"),
        ("stop_strings", "stop_words"),
        ("runtime_top_k", "top_k"),
        ("runtime_top_p", "top_p"),
        ("len_penalty", "length_penalty"),
        ("streaming", "stream"),
        *_same(
            "num_return_sequences",
            "exclude_input_in_output",
            "end_id",
            "pad_id",
            "temperature",
            "early_stopping",
            "prompt_ignore_length",
            "repetition_penalty",
            "min_tokens",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "return_log_probs",
            "return_context_logits",
            "return_generation_logits",
            "return_perf_metrics",
            "beam_width",
            "prompt_embedding_table",
            "prompt_vocab_size",
            "lora_task_id",
            "lora_weights",
            "lora_config",
            "guided_decoding_guide_type",
            "guided_decoding_guide",
            "return_num_input_tokens",
            "return_num_output_tokens",
            "min_length",
            "no_repeat_ngram_size",
            "include_stop_in_output",
            "num_logprobs",
            "min_p",
            "cache_salt",
            "priority",
            "timeout_ms",
            "skip_special_tokens",
            "return_finish_reason",
            "return_usage",
        ),
    ),
    outputs=(
        ("flow", "_flow"),
        ("acceptance_rate", "_acceptance_rate"),
        *_RESULTS,
    ),
)

_DETOKENIZE = Step(
    role="detokenize",
    inputs=(
        ("FLOW", "_flow"),
        ("ACCEPTANCE_RATE", "_acceptance_rate"),
    ),
    outputs=(("OUTPUT", "text_output"), ("ACCEPTANCE_RATE", "acceptance_rate")),
)

STEPS = (_TOKENIZE, _LLM, _DETOKENIZE)
