# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Every declared input: what is wrong with which value, and how the refusal must read.

A row of ``WRONG`` is (field, value, pattern of the message). Fields in ``UNLIMITED`` take every
value of their type. ``REFUSED`` fields ask for what is not served.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from e2e_server import VOCAB

NAN, INF = float("nan"), float("inf")
Row = tuple[str, Any, str]


def _half(*shape: int) -> np.ndarray:
    return np.zeros((1, *shape), np.float16)


# Inputs that need the beginning of another field's value to make sense come with it.
WRONG_LLM: list[Row] = [
    ("input_ids", [-1], r"input_ids: token id -1 at position 0 is outside \[0, 2560\)"),
    ("input_ids", [VOCAB], r"input_ids: token id 2560 .* outside \[0, 2560\)"),
    ("input_lengths", 0, r"input_lengths: 0 is outside 1 \.\. 3"),
    ("input_lengths", 4, r"input_lengths: 4 is outside 1 \.\. 3"),
    ("request_output_len", 0, r"request_output_len .*: 0 must be at least 1"),
    ("request_output_len", 5000, r"request_output_len .* = 5003 exceed .* max_seq_len of 4096"),
    ("num_return_sequences", 0, r"num_return_sequences: 0 is outside \[1, \d+\]"),
    ("num_return_sequences", 2, r"num_return_sequences: 2 requires decoupled .* limit is 1"),
    ("end_id", -2, r"end_id: token id -2 .* outside \[0, 2560\)"),
    ("end_id", VOCAB, r"end_id: token id 2560 .* outside \[0, 2560\)"),
    ("pad_id", -2, r"pad_id: -2 must be at least -1"),
    ("stop_words_list", [[5, 6], [3, -1]], r"stop_words_list: .*3"),
    ("stop_words_list", [[5, 6], [2, 1]], r"stop_words_list: .*"),
    ("stop_words_list", [[VOCAB], [1]], r"stop_words_list: token id 2560 .*\[0, 2560\)"),
    ("bad_words_list", [[5, 6], [3, -1]], r"bad_words_list: .*3"),
    ("bad_words_list", [[-4], [1]], r"bad_words_list: token id -4 .*\[0, 2560\)"),
    ("embedding_bias", [0.0] * (VOCAB + 1), r"embedding_bias: has 2561 values, .* has 2560"),
    ("embedding_bias", [0.0, NAN], r"embedding_bias: the value of token 1 is not finite"),
    ("temperature", -1.0, r"temperature: -1 is outside \[0, 1000\]"),
    ("temperature", NAN, r"temperature: "),
    ("runtime_top_k", -1, r"runtime_top_k \(top_k\): -1 is outside \[0, "),
    ("runtime_top_p", 1.5, r"runtime_top_p \(top_p\): 1.5 is outside \[0, 1\]"),
    ("runtime_top_p_min", 2.0, r"runtime_top_p_min: 2 is outside \[0, 1\]"),
    ("runtime_top_p_decay", 1.5, r"runtime_top_p_decay: 1.5 is outside \["),
    ("runtime_top_p_reset_ids", -2, r"runtime_top_p_reset_ids: .*-2"),
    ("runtime_top_p_reset_ids", VOCAB, r"runtime_top_p_reset_ids: .*2560"),
    ("prompt_ignore_length", -1, r"prompt_ignore_length: -1 is outside \[0, "),
    ("repetition_penalty", 0.0, r"repetition_penalty: 0.0+ must be > 0"),
    ("repetition_penalty", INF, r"repetition_penalty: "),
    ("min_tokens", -1, r"min_tokens: -1 is outside \[0, "),
    ("min_length", -1, r"min_(tokens|length): -1 is outside \[0, "),
    ("presence_penalty", NAN, r"presence_penalty: "),
    ("frequency_penalty", INF, r"frequency_penalty: "),
    ("stop", True, r"Trying to stop a request but request ID is not provided"),
    ("streaming", True, r"Streaming is only supported if .* decoupled mode"),
    ("retention_token_range_starts", [0], r"retention_token_range_ends: has 0 values, .* has 1"),
    ("retention_token_range_ends", [1], r"retention_token_range_ends: has 1 values, .* has 0"),
    ("retention_token_range_priorities", [1], r"retention_token_range_priorities: has 1 values"),
    ("retention_token_range_durations_ms", [1, 2], r"retention_token_range_durations_ms: has 2"),
    ("retention_decode_priority", [101], r"retention_decode_priority: 101 is outside \[0, 100\]"),
    ("retention_decode_duration_ms", [-2], r"retention_decode_duration_ms: -2 is outside \[-1, "),
    ("stop_strings", ["x" * 100_000], r"stop_strings: 100000 bytes in all exceed .* of \d+"),
    ("num_logprobs", -1, r"num_logprobs: -1 must be at least 0"),
    ("num_logprobs", 65, r"num_logprobs: 65 is outside \[-1, 64\]"),
    ("min_p", 1.5, r"min_p: 1.5 is outside \[0, 1\]"),
    ("priority", 10, r"priority: 10 is outside \[0, 9\]"),
    ("priority", -1, r"priority: -1 is outside \[0, 9\]"),
    ("timeout_ms", 0, r"timeout_ms: 0 must be at least 1"),
]  # fmt: skip

UNLIMITED_LLM: dict[str, Any] = {
    "seed": 2**64 - 1,
    "return_log_probs": True,
    "return_context_logits": True,
    "return_generation_logits": True,
    "return_perf_metrics": True,
    "return_kv_cache_reuse_stats": True,
    "exclude_input_in_output": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
    "include_stop_in_output": True,
    "cache_salt": "salt",
    "return_text": True,
    "skip_special_tokens": False,
    "return_finish_reason": True,
    "return_usage": True,
}

# (a value that asks for nothing, one that asks for something)
NEUTRAL_LLM: dict[str, tuple[Any, Any]] = {
    "beam_width": (1, 2),
    "len_penalty": (1.0, 0.5),
    "early_stopping": (0, 2),
    "beam_search_diversity_rate": (0.0, 0.5),
    "no_repeat_ngram_size": (0, 2),
    "draft_acceptance_threshold": (0.0, 0.5),
    "prompt_vocab_size": (0, 8),
    "skip_cross_attn_blocks": ([False], [True]),
}

REFUSED_LLM: dict[str, Any] = {
    "encoder_input_features": _half(2, 2),
    "encoder_output_lengths": 2,
    "decoder_input_ids": [1],
    "decoder_input_lengths": 1,
    "cross_attention_mask": np.ones((1, 1, 1), np.bool_),
    "draft_input_ids": [1],
    "draft_logits": np.zeros((1, 1, 4), np.float32),
    "prompt_embedding_table": _half(2, 2),
    "prompt_table_extra_ids": [1],
    "mrope_rotary_cos_sin": [0.0, 1.0],
    "mrope_position_deltas": [1],
    "lora_task_id": 1,
    "lora_weights": _half(1, 4),
    "lora_config": np.zeros((1, 1, 3), np.int32),
    "context_phase_params": [1, 2],
    "guided_decoding_guide_type": ["json"],
    "guided_decoding_guide": ["{}"],
    "lookahead_window_size": [2],
    "lookahead_ngram_size": [2],
    "lookahead_verification_set_size": [2],
}

# The messages of an ensemble of steps name the step's tensor. The fused one adds the client's name,
# but for these: a rule of the model, a sum of two fields, another name of a field.
NOT_BY_ONE_NAME = {"stream", "text_input", "min_length"}

WRONG_ENSEMBLE: list[Row] = [
    ("text_input", "word " * 5000, r"exceed the model's max_seq_len of 4096"),
    ("max_tokens", 0, r"request_output_len \(max_tokens\): 0 must be at least 1"),
    ("max_tokens", 5000, r"max_tokens.* exceed .* max_seq_len of 4096"),
    ("num_return_sequences", 0, r"num_return_sequences: 0 is outside \[1, "),
    ("end_id", -2, r"end_id: token id -2 .* outside \[0, 2560\)"),
    ("pad_id", -2, r"(?i)pad_id: .*-2"),
    ("top_k", -1, r"top_k\): -1 is outside \[0, "),
    ("top_p", 1.5, r"top_p\): 1.5 is outside \[0, 1\]"),
    ("temperature", -1.0, r"temperature: -1 is outside \[0, 1000\]"),
    ("prompt_ignore_length", -1, r"prompt_ignore_length: -1 is outside \[0, "),
    ("repetition_penalty", 0.0, r"repetition_penalty: 0.0+ must be > 0"),
    ("min_tokens", -1, r"min_tokens: -1 is outside \[0, "),
    ("min_length", -1, r"min_(tokens|length): -1 is outside \[0, "),
    ("presence_penalty", NAN, r"presence_penalty: "),
    ("frequency_penalty", INF, r"frequency_penalty: "),
    ("stream", True, r"Streaming is only supported if .* decoupled mode"),
    ("stop_words", ["x" * 100_000], r"stop_strings.*: 100000 bytes in all exceed .* of \d+"),
    ("bad_words", ["a"] * 4000, r"bad_words_list.*: 4000 is outside \[0, \d+\]"),
    ("embedding_bias_words", ["a"], r"EMBEDDING_BIAS_WEIGHTS.*: has 0 values, .* has 1"),
    ("embedding_bias_weights", [1.0], r"EMBEDDING_BIAS_WEIGHTS.*: has 1 values, .* has 0"),
    ("messages", "{}", r"MESSAGES.*: must be a JSON array"),
    ("messages", "[]", r"messages is \[\], expected a list of at least one message"),
    ("chat_options", "{}", r"CHAT_OPTIONS.*: has no meaning without MESSAGES"),
    ("num_logprobs", 65, r"num_logprobs: 65 is outside \[-1, 64\]"),
    ("min_p", 1.5, r"min_p: 1.5 is outside \[0, 1\]"),
    ("priority", 10, r"priority: 10 is outside \[0, 9\]"),
    ("timeout_ms", 0, r"timeout_ms: 0 must be at least 1"),
]  # fmt: skip

UNLIMITED_ENSEMBLE = {
    name: value
    for name, value in UNLIMITED_LLM.items()
    if name not in ("return_text", "return_kv_cache_reuse_stats")
}

# field: (neutral, asking, name in the message)
NEUTRAL_ENSEMBLE: dict[str, tuple[Any, Any, str]] = {
    "beam_width": (1, 2, "beam_width"),
    "length_penalty": (1.0, 0.5, "len_penalty"),
    "early_stopping": (0, 2, "early_stopping"),
    "no_repeat_ngram_size": (0, 2, "no_repeat_ngram_size"),
    "prompt_vocab_size": (0, 8, "prompt_vocab_size"),
}

REFUSED_ENSEMBLE: dict[str, tuple[Any, str]] = {
    "decoder_text_input": ("x", "DECODER_QUERY"),
    "prompt_embedding_table": (_half(2, 2), "prompt_embedding_table"),
    "prompt_table_extra_id": (1, "PROMPT_TABLE_EXTRA_ID"),
    "lora_task_id": (1, "lora_task_id"),
    "lora_weights": (_half(1, 4), "lora_weights"),
    "lora_config": (np.zeros((1, 1, 3), np.int32), "lora_config"),
    "guided_decoding_guide_type": (["json"], "guided_decoding_guide_type"),
    "guided_decoding_guide": (["{}"], "guided_decoding_guide"),
}
