# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The parameter keys of TensorRT-LLM's in-flight batching repository, which the backend accepts.

Deploy scripts written for that repository fill its templates by placeholder names; mostly the
placeholder has the name of the parameter.
"""

from __future__ import annotations

from slipstream.config import Role

# Parameter -> placeholder, in the order of the template.
_LLM = {
    "gpt_model_type": "batching_strategy",
    "gpt_model_path": "engine_dir",
    "encoder_model_path": "encoder_engine_dir",
} | {
    key: key
    for key in (
        "max_beam_width",
        "max_attention_window_size",
        "sink_token_length",
        "exclude_input_in_output",
        "cancellation_check_period_ms",
        "stats_check_period_ms",
        "recv_poll_period_ms",
        "iter_stats_max_iterations",
        "request_stats_max_iterations",
        "normalize_log_probs",
        "gpu_device_ids",
        "participant_ids",
        "num_nodes",
        "gpu_weights_percent",
        "executor_worker_path",
        "max_tokens_in_paged_kv_cache",
        "kv_cache_free_gpu_mem_fraction",
        "cross_kv_cache_fraction",
        "kv_cache_host_memory_bytes",
        "kv_cache_onboard_blocks",
        "enable_kv_cache_reuse",
        "lora_cache_optimal_adapter_size",
        "lora_cache_max_adapter_size",
        "lora_cache_gpu_memory_fraction",
        "lora_cache_host_memory_bytes",
        "lora_prefetch_dir",
        "decoding_mode",
        "medusa_choices",
        "eagle_choices",
        "lookahead_window_size",
        "lookahead_ngram_size",
        "lookahead_verification_set_size",
        "speculative_decoding_fast_logits",
        "enable_chunked_context",
        "multi_block_mode",
        "enable_context_fmha_fp32_acc",
        "cuda_graph_mode",
        "cuda_graph_cache_size",
        "enable_trt_overlap",
        "batch_scheduler_policy",
        "guided_decoding_backend",
        "tokenizer_dir",
        "xgrammar_tokenizer_info_path",
    )
}
_TOKENIZE = {
    "tokenizer_dir": "tokenizer_dir",
    "add_special_tokens": "add_special_tokens",
    "multimodal_model_path": "multimodal_model_path",
    "gpt_model_path": "engine_dir",
    "max_num_images": "max_num_images",
    "hf_model_path": "hf_model_path",
}
_DETOKENIZE = {
    "tokenizer_dir": "tokenizer_dir",
    "skip_special_tokens": "skip_special_tokens",
}

# `tensorrt_llm_bls`, of role `pipeline`. Scripts fill no tokenizer in: it is the llm's then.
BLS_NO_SUPPORT = {
    "tensorrt_llm_draft_model_name": "draft tokens",
    "multimodal_encoders_name": "multimodal inputs",
}
BLS_PLACEHOLDERS = {
    key: key
    for key in (
        "tokenizer_dir",
        "add_special_tokens",
        "accumulate_tokens",
        "tensorrt_llm_model_name",
        *BLS_NO_SUPPORT,
    )
}

PLACEHOLDERS: dict[Role, dict[str, str]] = {
    "llm": _LLM,
    "tokenize": _TOKENIZE,
    "detokenize": _DETOKENIZE,
    "pipeline": _TOKENIZE,
}

# A bound on waiting requests, which the executor keeps: Triton's own queue is always empty here.
QUEUE_SIZE = {"max_queue_requests": "max_queue_size"}

# Further names that the backend understands, seen in hand-written configurations.
OTHER_KEYS: dict[Role, tuple[str, ...]] = {
    "llm": (
        "FORCE_CPU_ONLY_INPUT_TENSORS",
        "batching_strategy",
        "engine_dir",
        "logits_datatype",
        "encoder_input_features_data_type",
        "prompt_embedding_table_data_type",
    ),
    "tokenize": ("engine_dir", "tokenizer_type"),
    "detokenize": ("tokenizer_type",),
    "pipeline": (
        "engine_dir",
        "tokenizer_type",
        "llm_model_name",
        "tensorrt_llm_model_name",
        "accumulate_tokens",
        *BLS_NO_SUPPORT,
    ),
}

# A configuration with any of these is written in the keys above rather than in Slipstream's.
MARKERS = frozenset({"gpt_model_path", "engine_dir", "tokenizer_dir", "gpt_model_type"})
