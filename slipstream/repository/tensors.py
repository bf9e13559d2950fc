# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The tensors of each model in a repository: the one table that configurations are made from.

Names, types, dims, order and flags are the wire interface that existing clients rely on. ``dims``
leave out the batch dimension. A prompt comes as ``QUERY`` (the ensemble's ``text_input``) or as
chat ``MESSAGES``, so that both are optional here; the backend wants one of them. It also wants
``REQUEST_OUTPUT_LEN`` and ``max_tokens``; see ``wiring.REFUSED_BY_TOKENIZE``. `tensorrt_llm_bls`
never is an ensemble of steps, and declares ``max_tokens`` required.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Types that a repository may choose; a template leaves them as placeholders.
LOGITS = "logits_datatype"
ENCODER_FEATURES = "encoder_input_features_data_type"
PROMPT_TABLE = "prompt_embedding_table_data_type"
DTYPE_CHOICES = {
    LOGITS: ("FP32", "FP16"),
    ENCODER_FEATURES: ("FP16", "FP32", "BF16"),
    PROMPT_TABLE: ("FP16", "FP32", "BF16"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    dtype: Triton's name without ``TYPE_``, or a key of ``DTYPE_CHOICES``. scalar: the client sends
    [batch, 1], the backend sees [batch]. ragged: rows of a batch may differ in length.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    scalar: bool = False
    ragged: bool = False

    def type_name(self, chosen: dict[str, str]) -> str:
        """Triton's name without ``TYPE_``, choices resolved; the first choice is the default."""
        if self.dtype in DTYPE_CHOICES:
            return chosen.get(self.dtype, DTYPE_CHOICES[self.dtype][0])
        return self.dtype


@dataclass(frozen=True, slots=True)
class Interface:
    """The inputs and outputs of one model, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def _value(name: str, dtype: str, *, optional: bool = True) -> Tensor:
    return Tensor(name, dtype, (1,), optional=optional, scalar=True)


def _ragged(name: str, dtype: str, *dims: int) -> Tensor:
    return Tensor(name, dtype, dims, optional=True, ragged=True)


def _optional(name: str, dtype: str, *dims: int) -> Tensor:
    return Tensor(name, dtype, dims, optional=True)


_LLM_INPUTS = (
    _ragged("input_ids", "INT32", -1),
    _ragged("encoder_input_features", ENCODER_FEATURES, -1, -1),
    _value("encoder_output_lengths", "INT32"),
    _value("input_lengths", "INT32", optional=False),
    _value("request_output_len", "INT32", optional=False),
    _value("num_return_sequences", "INT32"),
    _ragged("draft_input_ids", "INT32", -1),
    _ragged("decoder_input_ids", "INT32", -1),
    _value("decoder_input_lengths", "INT32"),
    _ragged("draft_logits", LOGITS, -1, -1),
    _value("draft_acceptance_threshold", "FP32"),
    _value("end_id", "INT32"),
    _value("pad_id", "INT32"),
    _ragged("stop_words_list", "INT32", 2, -1),
    _ragged("bad_words_list", "INT32", 2, -1),
    _ragged("embedding_bias", "FP32", -1),
    _value("beam_width", "INT32"),
    _value("temperature", "FP32"),
    _value("runtime_top_k", "INT32"),
    _value("runtime_top_p", "FP32"),
    _value("runtime_top_p_min", "FP32"),
    _value("runtime_top_p_decay", "FP32"),
    _value("runtime_top_p_reset_ids", "INT32"),
    _value("len_penalty", "FP32"),
    _value("prompt_ignore_length", "INT32"),
    _value("early_stopping", "INT32"),
    _value("repetition_penalty", "FP32"),
    _value("min_tokens", "INT32"),
    _value("beam_search_diversity_rate", "FP32"),
    _value("presence_penalty", "FP32"),
    _value("frequency_penalty", "FP32"),
    _value("seed", "UINT64"),
    _value("return_log_probs", "BOOL"),
    _value("return_context_logits", "BOOL"),
    _value("return_generation_logits", "BOOL"),
    _value("return_perf_metrics", "BOOL"),
    _value("exclude_input_in_output", "BOOL"),
    _value("stop", "BOOL"),
    _value("streaming", "BOOL"),
    _ragged("prompt_embedding_table", PROMPT_TABLE, -1, -1),
    _ragged("prompt_table_extra_ids", "UINT64", -1),
    _value("prompt_vocab_size", "INT32"),
    _ragged("cross_attention_mask", "BOOL", -1, -1),
    _optional("mrope_rotary_cos_sin", "FP32", -1),
    _optional("mrope_position_deltas", "INT64", 1),
    _value("lora_task_id", "UINT64"),
    _ragged("lora_weights", "FP16", -1, -1),
    _ragged("lora_config", "INT32", -1, 3),
    _ragged("context_phase_params", "UINT8", -1),
    _ragged("skip_cross_attn_blocks", "BOOL", 1),
    _ragged("retention_token_range_starts", "INT32", -1),
    _ragged("retention_token_range_ends", "INT32", -1),
    _ragged("retention_token_range_priorities", "INT32", -1),
    _ragged("retention_token_range_durations_ms", "INT32", -1),
    _ragged("retention_decode_priority", "INT32", 1),
    _ragged("retention_decode_duration_ms", "INT32", 1),
    _ragged("guided_decoding_guide_type", "STRING", 1),
    _ragged("guided_decoding_guide", "STRING", 1),
    _ragged("lookahead_window_size", "INT32", 1),
    _ragged("lookahead_ngram_size", "INT32", 1),
    _ragged("lookahead_verification_set_size", "INT32", 1),
    _value("return_num_input_tokens", "BOOL"),
    _value("return_num_output_tokens", "BOOL"),
    # Sent by load generators although older configurations do not declare them.
    _value("min_length", "INT32"),
    _value("no_repeat_ngram_size", "INT32"),
    _value("return_kv_cache_reuse_stats", "BOOL"),
    # Slipstream's own.
    _ragged("stop_strings", "STRING", -1),
    _value("include_stop_in_output", "BOOL"),
    _value("num_logprobs", "INT32"),
    _value("min_p", "FP32"),
    _value("cache_salt", "STRING"),
    _value("priority", "INT32"),
    _value("timeout_ms", "INT32"),
    _value("return_text", "BOOL"),
    _value("skip_special_tokens", "BOOL"),
    _value("return_finish_reason", "BOOL"),
    _value("return_usage", "BOOL"),
)

# What both `llm` and `ensemble` return, after their own first outputs.
_RESULT_OUTPUTS = (
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
    Tensor("context_logits", LOGITS, (-1, -1)),
    Tensor("generation_logits", LOGITS, (-1, -1, -1)),
    Tensor("batch_index", "INT32", (1,)),
    Tensor("sequence_index", "INT32", (1,)),
)
_PERF_OUTPUTS = (
    Tensor("kv_cache_alloc_new_blocks", "INT32", (1,)),
    Tensor("kv_cache_reused_blocks", "INT32", (1,)),
    Tensor("kv_cache_alloc_total_blocks", "INT32", (1,)),
    Tensor("arrival_time_ns", "INT64", (1,)),
    Tensor("first_scheduled_time_ns", "INT64", (1,)),
    Tensor("first_token_time_ns", "INT64", (1,)),
    Tensor("last_token_time_ns", "INT64", (1,)),
    Tensor("acceptance_rate", "FP32", (1,)),
    Tensor("total_accepted_draft_tokens", "INT32", (1,)),
    Tensor("total_draft_tokens", "INT32", (1,)),
    Tensor("num_input_tokens", "INT32", (1,)),
    Tensor("num_output_tokens", "INT32", (1,)),
)
_OWN_OUTPUTS = (
    Tensor("top_log_probs", "FP32", (-1, -1)),
    Tensor("top_log_prob_ids", "INT32", (-1, -1)),
    Tensor("finish_reason", "STRING", (1,)),
    Tensor("stop_reason", "STRING", (1,)),
    Tensor("prompt_tokens", "INT32", (1,)),
    Tensor("completion_tokens", "INT32", (1,)),
    Tensor("cached_tokens", "INT32", (1,)),
)

# Clients index the first two by position.
_LLM_OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    *_RESULT_OUTPUTS,
    Tensor("context_phase_params", "UINT8", (-1,)),
    *_PERF_OUTPUTS,
    Tensor("text_output", "STRING", (-1,)),
    *_OWN_OUTPUTS,
    Tensor("flow", "STRING", (-1,)),
)

_ENSEMBLE_INPUTS = (
    _optional("text_input", "STRING", 1),
    _optional("decoder_text_input", "STRING", 1),
    _optional("max_tokens", "INT32", 1),
    _optional("num_return_sequences", "INT32", 1),
    _optional("bad_words", "STRING", -1),
    _optional("stop_words", "STRING", -1),
    _optional("exclude_input_in_output", "BOOL", 1),
    _optional("end_id", "INT32", 1),
    _optional("pad_id", "INT32", 1),
    _optional("top_k", "INT32", 1),
    _optional("top_p", "FP32", 1),
    _optional("temperature", "FP32", 1),
    _optional("length_penalty", "FP32", 1),
    _optional("early_stopping", "INT32", 1),
    _optional("prompt_ignore_length", "INT32", 1),
    _optional("repetition_penalty", "FP32", 1),
    _optional("min_tokens", "INT32", 1),
    _optional("presence_penalty", "FP32", 1),
    _optional("frequency_penalty", "FP32", 1),
    _optional("seed", "UINT64", 1),
    _optional("return_log_probs", "BOOL", 1),
    _optional("return_context_logits", "BOOL", 1),
    _optional("return_generation_logits", "BOOL", 1),
    _optional("return_perf_metrics", "BOOL", 1),
    _optional("beam_width", "INT32", 1),
    _optional("stream", "BOOL", 1),
    _optional("prompt_embedding_table", PROMPT_TABLE, -1, -1),
    _optional("prompt_table_extra_id", "UINT64", 1),
    _optional("prompt_vocab_size", "INT32", 1),
    _optional("embedding_bias_words", "STRING", -1),
    _optional("embedding_bias_weights", "FP32", -1),
    _optional("lora_task_id", "UINT64", 1),
    _ragged("lora_weights", "FP16", -1, -1),
    _ragged("lora_config", "INT32", -1, 3),
    _ragged("guided_decoding_guide_type", "STRING", 1),
    _ragged("guided_decoding_guide", "STRING", 1),
    _optional("return_num_input_tokens", "BOOL", 1),
    _optional("return_num_output_tokens", "BOOL", 1),
    # Slipstream's own.
    _optional("messages", "STRING", 1),
    _optional("chat_options", "STRING", 1),
    _optional("min_length", "INT32", 1),
    _optional("no_repeat_ngram_size", "INT32", 1),
    _optional("include_stop_in_output", "BOOL", 1),
    _optional("num_logprobs", "INT32", 1),
    _optional("min_p", "FP32", 1),
    _optional("cache_salt", "STRING", 1),
    _optional("priority", "INT32", 1),
    _optional("timeout_ms", "INT32", 1),
    _optional("skip_special_tokens", "BOOL", 1),
    _optional("return_finish_reason", "BOOL", 1),
    _optional("return_usage", "BOOL", 1),
)

_PREPROCESSING_INPUTS = (
    _optional("QUERY", "STRING", 1),
    _optional("DECODER_QUERY", "STRING", 1),
    _optional("IMAGE_BYTES", "UINT8", -1, -1, -1, -1),
    _optional("IMAGE_URL", "STRING", 1),
    _optional("VIDEO_BYTES", "UINT8", -1, -1, -1, -1),
    _optional("REQUEST_OUTPUT_LEN", "INT32", 1),
    _optional("BAD_WORDS_DICT", "STRING", -1),
    _optional("STOP_WORDS_DICT", "STRING", -1),
    _optional("EMBEDDING_BIAS_WORDS", "STRING", -1),
    _optional("EMBEDDING_BIAS_WEIGHTS", "FP32", -1),
    _optional("END_ID", "INT32", 1),
    _optional("PAD_ID", "INT32", 1),
    _optional("PROMPT_TABLE_EXTRA_ID", "UINT64", 1),
    _optional("IMAGES", "STRING", -1),
    # Slipstream's own.
    _optional("MESSAGES", "STRING", 1),
    _optional("CHAT_OPTIONS", "STRING", 1),
)
_PREPROCESSING_OUTPUTS = (
    Tensor("INPUT_ID", "INT32", (-1,)),
    Tensor("REQUEST_INPUT_LEN", "INT32", (1,)),
    Tensor("DECODER_INPUT_ID", "INT32", (-1,)),
    Tensor("REQUEST_DECODER_INPUT_LEN", "INT32", (1,)),
    Tensor("BAD_WORDS_IDS", "INT32", (2, -1)),
    Tensor("STOP_WORDS_IDS", "INT32", (2, -1)),
    Tensor("EMBEDDING_BIAS", "FP32", (-1,)),
    Tensor("REQUEST_OUTPUT_LEN", "INT32", (-1,)),
    Tensor("OUT_END_ID", "INT32", (1,)),
    Tensor("OUT_PAD_ID", "INT32", (1,)),
    Tensor("OUT_PROMPT_TABLE_EXTRA_IDS", "UINT64", (-1,)),
    Tensor("PIXEL_VALUES", "FP16", (-1, -1, -1, -1)),
    Tensor("ASPECT_RATIO_IDS", "INT64", (-1,)),
    Tensor("ASPECT_RATIO_MASK", "INT64", (-1, -1)),
    Tensor("CROSS_ATTENTION_MASK", "INT64", (-1, -1, -1)),
    Tensor("IMAGE_SIZES", "INT64", (-1, 2)),
    Tensor("IS_VIDEO_INPUT", "BOOL", (1,)),
    Tensor("ATTENTION_MASK", "INT64", (-1,)),
    Tensor("IMAGE_GRID_THW", "INT64", (3,)),
    Tensor("VISION_INPUT_ID", "INT32", (-1,)),
)

_POSTPROCESSING_INPUTS = (
    # Needed unless FLOW brings the text.
    _optional("TOKENS_BATCH", "INT32", -1, -1),
    _optional("SEQUENCE_LENGTH", "INT32", -1),
    # Slipstream's own: what role `llm` sends in an ensemble.
    _optional("FLOW", "STRING", -1),
    _optional("ACCEPTANCE_RATE", "FP32", 1),
)

_PIPELINE_OUTPUTS = (
    Tensor("text_output", "STRING", (-1,)),
    *_RESULT_OUTPUTS,
    *_PERF_OUTPUTS,
    *_OWN_OUTPUTS,
)

# By role of the backend. An ensemble of steps has the interface of `pipeline`.
INTERFACES = {
    "llm": Interface(_LLM_INPUTS, _LLM_OUTPUTS),
    "tokenize": Interface(_PREPROCESSING_INPUTS, _PREPROCESSING_OUTPUTS),
    "detokenize": Interface(
        _POSTPROCESSING_INPUTS,
        (Tensor("OUTPUT", "STRING", (-1,)), Tensor("ACCEPTANCE_RATE", "FP32", (1,))),
    ),
    "pipeline": Interface(_ENSEMBLE_INPUTS, _PIPELINE_OUTPUTS),
}

# Role `pipeline` as `tensorrt_llm_bls`. The last inputs are refused when they ask for anything.
BLS_INTERFACE = Interface(
    (
        *(
            replace(tensor, optional=False) if tensor.name == "max_tokens" else tensor
            for tensor in _ENSEMBLE_INPUTS
        ),
        _optional("image_input", "FP16", -1, 3, -1, -1),
        _optional("image_bytes_input", "UINT8", -1, -1, -1, -1),
        _optional("image_url_input", "STRING", 1),
        _optional("video_bytes_input", "UINT8", -1, -1, -1, -1),
        _optional("num_draft_tokens", "INT32", 1),
        _optional("use_draft_logits", "BOOL", 1),
    ),
    _PIPELINE_OUTPUTS,
)
