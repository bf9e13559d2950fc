// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/parameters.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "triton/parameter_setters.h"

namespace slipstream::triton {
namespace {

using LlmRow = ParameterRow<LlmParameters>;
using LlmSet = LlmRow::Set;

#define LLM(member) SLIPSTREAM_FIELD(LlmParameters, member)

LlmSet LlmInt(int32_t& (*field)(LlmParameters*), int64_t min, int64_t max = kMaxInt32) {
  return Int<LlmParameters>(field, min, max);
}

// Only the value that asks for nothing is accepted.
LlmSet OnlyInt(int64_t only, const char* feature) {
  return [=](std::string_view key, const std::string& text, LlmParameters*) -> CanonicalValue {
    const auto number = ParseInt(key, text, 0, kMaxInt64);
    if (!number.ok()) return number.status();
    if (*number == only) return text;
    return Status::Unsupported("parameter " + std::string(key) + ": " + text +
                               " is not supported, must be " + std::to_string(only) +
                               " (no support for " + feature + ")");
  };
}
LlmSet Choice(std::string& (*field)(LlmParameters*), std::vector<std::string_view> choices) {
  return [=](std::string_view key, const std::string& text, LlmParameters* p) -> CanonicalValue {
    const auto choice = ParseChoice(key, text, choices);
    if (!choice.ok()) return choice.status();
    return field(p) = choices[*choice];
  };
}

CanonicalValue SetFraction(std::string_view key, const std::string& text, LlmParameters* p) {
  const auto number = ParseFloat(key, text, 0, 1);
  if (!number.ok()) return number.status();
  p->worker.kv_cache_fraction = *number;
  return nlohmann::json(*number).dump();  // unlike to_string() with all its digits
}

CanonicalValue SetBatchingStrategy(std::string_view key, const std::string& text, LlmParameters*) {
  if (text == "inflight_fused_batching" || text == "inflight_batching") {
    return std::string("inflight_batching");
  }
  return Status::InvalidArgument(
      "parameter " + std::string(key) + ": '" + text +
      "': Invalid gpt_model_type. Must be inflight_batching or inflight_fused_batching; V1 "
      "(static) batching is not served.");
}

CanonicalValue SetPolicy(std::string_view key, const std::string& text, LlmParameters* p) {
  const std::vector<std::string_view> choices = {"guaranteed_no_evict", "max_utilization"};
  const auto choice = ParseChoice(key, text, choices);
  if (!choice.ok()) return choice.status();
  p->executor.policy =
      *choice == 0 ? SchedulerPolicy::kGuaranteedNoEvict : SchedulerPolicy::kMaxUtilization;
  return std::string(choices[*choice]);
}

CanonicalValue SetWorkerKind(std::string_view key, const std::string& text, LlmParameters* p) {
  const auto choice = ParseChoice(key, text, {"process", "scripted"});
  if (!choice.ok()) return choice.status();
  p->worker_kind = *choice == 0 ? WorkerKind::kProcess : WorkerKind::kScripted;
  return text;
}

CanonicalValue SetDecodingMode(std::string_view key, const std::string& text, LlmParameters*) {
  if (text == "auto" || text == "top_k" || text == "top_p" || text == "top_k_top_p") {
    return text;  // each request says how it samples
  }
  return Status::Unsupported("parameter " + std::string(key) + ": '" + text +
                             "' is not supported, must be one of auto, top_k, top_p, top_k_top_p");
}

CanonicalValue SetGpu(std::string_view key, const std::string& text, LlmParameters* p) {
  if (text.find_first_of(",;") != std::string::npos) {
    return Status::Unsupported("parameter " + std::string(key) + ": '" + text +
                               "' is not supported, must be one GPU");
  }
  const auto gpu = ParseInt(key, text, 0, 1023);
  if (!gpu.ok()) return gpu.status();
  return p->worker.device = "cuda:" + std::to_string(*gpu);
}

CanonicalValue SetWindows(std::string_view key, const std::string& text, LlmParameters* p) {
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const auto window = ParseInt(key, text.substr(begin, end - begin), 1, kMaxInt64);
    if (!window.ok()) return window.status();
    p->attention_windows.push_back(*window);
    begin = end + 1;
  }
  return text;
}

std::vector<LlmRow> OwnRows() {
  return {
      {"role", "", Any<LlmParameters>()},
      {"worker", "", SetWorkerKind},
      {"scripted", "", Text<LlmParameters>(LLM(scripted))},
      {"python_executable", "", Text<LlmParameters>(LLM(python.executable))},
      {"model", "", Text<LlmParameters>(LLM(worker.model))},
      {"tokenizer", "", Text<LlmParameters>(LLM(worker.tokenizer))},
      {"revision", "", Text<LlmParameters>(LLM(worker.revision))},
      {"dtype", "", Text<LlmParameters>(LLM(worker.dtype))},
      {"device", "", Text<LlmParameters>(LLM(worker.device))},
      {"load_format", "", Text<LlmParameters>(LLM(worker.load_format))},
      {"model_impl", "", Text<LlmParameters>(LLM(worker.model_impl))},
      {"trust_remote_code", "", Bool<LlmParameters>(LLM(worker.trust_remote_code))},
      {"num_threads", "", LlmInt(LLM(worker.num_threads), 0, 4096)},
      {"cuda_graphs", "", Bool<LlmParameters>(LLM(worker.cuda_graphs))},
      {"attention_backend", "",
       Choice(LLM(worker.attention_backend), {"auto", "triton", "flashinfer", "sdpa"})},
      {"deterministic", "", Bool<LlmParameters>(LLM(worker.deterministic))},
      {"seed", "", Int<LlmParameters>(LLM(worker.seed), 0, kMaxInt64)},
      {"tokens_per_block", "", LlmInt(LLM(worker.tokens_per_block), 1, 4096)},
      {"max_seq_len", "", LlmInt(LLM(worker.max_seq_len), 0)},
      {"kv_cache_dtype", "", Choice(LLM(worker.kv_cache_dtype), {"auto", "fp8"})},
      {"kv_cache_bytes", "", Int<LlmParameters>(LLM(worker.kv_cache_bytes), 0, kMaxInt64)},
      {"kv_cache_tokens", "", Int<LlmParameters>(LLM(worker.kv_cache_tokens), 0, kMaxInt64)},
      {"kv_cache_fraction", "", SetFraction},
      {"max_num_seqs", "", LlmInt(LLM(executor.max_num_seqs), 0, 65536)},
      {"max_num_tokens", "", LlmInt(LLM(executor.max_num_tokens), 0)},
      {"scheduler_policy", "", SetPolicy},
      {"enable_chunked_prefill", "", Bool<LlmParameters>(LLM(executor.enable_chunked_prefill))},
      {"enable_prefix_reuse", "", Bool<LlmParameters>(LLM(executor.enable_prefix_reuse))},
      {"enable_partial_reuse", "", Bool<LlmParameters>(LLM(executor.enable_partial_reuse))},
      {"pipeline_depth", "", LlmInt(LLM(executor.pipeline_depth), 1, 2)},
      {"max_queue_requests", "", LlmInt(LLM(executor.max_queue_requests), 0)},
      {"max_queue_tokens", "", Int<LlmParameters>(LLM(executor.max_queue_tokens), 0, kMaxInt64)},
      {"priority_ageing_ms", "", LlmInt(LLM(executor.priority_ageing_ms), 0)},
      {"watchdog_ms", "", LlmInt(LLM(executor.watchdog_ms), 0)},
      {"max_restarts", "", LlmInt(LLM(executor.max_restarts), 0)},
      {"restart_backoff_ms", "", LlmInt(LLM(executor.restart_backoff_ms), 0)},
      {"wrap_out_of_vocab_ids", "", Bool<LlmParameters>(LLM(executor.wrap_out_of_vocab_ids))},
      {"max_logprobs", "", LlmInt(LLM(executor.max_logprobs), 0)},
      {"exclude_input_in_output", "", Bool<LlmParameters>(LLM(exclude_input_in_output))},
      {"skip_special_tokens", "", Bool<LlmParameters>(LLM(skip_special_tokens))},
      {"cancellation_check_period_ms", "", LlmInt(LLM(cancellation_check_period_ms), 1, 60000)},
      {"stats_check_period_ms", "", LlmInt(LLM(stats_check_period_ms), 1, 600000)},
      {"drain_timeout_ms", "", LlmInt(LLM(drain_timeout_ms), 0)},
      {"exit_on_fatal", "", Bool<LlmParameters>(LLM(exit_on_fatal))},
      {"flow_window", "", LlmInt(LLM(flow_window), 1)},
  };
}

// The keys of TensorRT-LLM's backend: kept with their meaning, or accepted and logged when they
// mean nothing to this executor, or refused when they ask for what is not served.
std::vector<LlmRow> TensorRtLlmRows() {
  const auto none = [](const char* why) { return NoEffect<LlmParameters>(why); };
  return {
      {"gpt_model_type", "", SetBatchingStrategy},
      {"batching_strategy", "gpt_model_type", SetBatchingStrategy},
      {"gpt_model_path", "model", Text<LlmParameters>(LLM(worker.model))},
      {"engine_dir", "model", Text<LlmParameters>(LLM(worker.model))},
      {"encoder_model_path", "", none("encoder-decoder models are not served")},
      {"max_beam_width", "", OnlyInt(1, "beam search")},
      {"FORCE_CPU_ONLY_INPUT_TENSORS", "", none("inputs are always in host memory")},
      {"max_attention_window_size", "", SetWindows},
      {"sink_token_length", "", OnlyInt(0, "attention with sink tokens")},
      {"recv_poll_period_ms", "", none("there is no orchestrator to poll")},
      {"iter_stats_max_iterations", "", none("statistics are counters, not a ring")},
      {"request_stats_max_iterations", "", none("statistics are counters, not a ring")},
      {"normalize_log_probs", "", none("concerns beams only")},
      {"gpu_device_ids", "device", SetGpu},
      {"participant_ids", "", none("there are no MPI ranks")},
      {"num_nodes", "", OnlyInt(1, "more than one node")},
      {"gpu_weights_percent", "", none("weights are not streamed")},
      {"executor_worker_path", "", none("the worker is a Python process")},
      {"max_tokens_in_paged_kv_cache", "kv_cache_tokens",
       Int<LlmParameters>(LLM(worker.kv_cache_tokens), 0, kMaxInt64)},
      {"kv_cache_free_gpu_mem_fraction", "kv_cache_fraction", SetFraction},
      {"cross_kv_cache_fraction", "", none("encoder-decoder models are not served")},
      {"kv_cache_host_memory_bytes", "", OnlyInt(0, "a host tier of the KV cache")},
      {"kv_cache_onboard_blocks", "", none("there is no host tier")},
      {"enable_kv_cache_reuse", "enable_prefix_reuse",
       Bool<LlmParameters>(LLM(executor.enable_prefix_reuse))},
      {"lora_cache_optimal_adapter_size", "", none("LoRA adapters are not served")},
      {"lora_cache_max_adapter_size", "", none("LoRA adapters are not served")},
      {"lora_cache_gpu_memory_fraction", "", none("LoRA adapters are not served")},
      {"lora_cache_host_memory_bytes", "", none("LoRA adapters are not served")},
      {"lora_prefetch_dir", "", RefusedIfSet<LlmParameters>("LoRA adapters")},
      {"decoding_mode", "", SetDecodingMode},
      {"medusa_choices", "", none("speculative decoding is not served")},
      {"eagle_choices", "", none("speculative decoding is not served")},
      {"lookahead_window_size", "", RefusedIfSet<LlmParameters>("lookahead decoding")},
      {"lookahead_ngram_size", "", RefusedIfSet<LlmParameters>("lookahead decoding")},
      {"lookahead_verification_set_size", "", RefusedIfSet<LlmParameters>("lookahead decoding")},
      {"speculative_decoding_fast_logits", "", none("speculative decoding is not served")},
      {"enable_chunked_context", "enable_chunked_prefill",
       Bool<LlmParameters>(LLM(executor.enable_chunked_prefill))},
      {"multi_block_mode", "", none("the attention kernel decides")},
      {"enable_context_fmha_fp32_acc", "", none("attention accumulates in float32")},
      {"cuda_graph_mode", "cuda_graphs", Bool<LlmParameters>(LLM(worker.cuda_graphs))},
      {"cuda_graph_cache_size", "", none("the worker decides")},
      {"enable_trt_overlap", "", none("steps overlap by pipeline_depth")},
      {"batch_scheduler_policy", "scheduler_policy", SetPolicy},
      {"guided_decoding_backend", "", none("requests for guided decoding are refused")},
      {"tokenizer_dir", "tokenizer", Text<LlmParameters>(LLM(worker.tokenizer))},
      {"xgrammar_tokenizer_info_path", "", none("derived from the tokenizer")},
      {"logits_datatype", "", none("the declared outputs say it")},
      {"encoder_input_features_data_type", "", none("encoder-decoder models are not served")},
      {"prompt_embedding_table_data_type", "", none("prompt tables are not served")},
  };
}

}  // namespace

StatusOr<LlmParameters> LlmParameters::FromMap(const ParameterMap& map) {
  static const std::vector<LlmRow> rows = [] {
    std::vector<LlmRow> all = OwnRows();
    for (LlmRow& row : TensorRtLlmRows()) all.push_back(std::move(row));
    return all;
  }();
  LlmParameters parameters;
  parameters.executor.max_num_seqs = 0;  // the worker's to choose
  parameters.executor.max_num_tokens = 0;
  if (Status s = ApplyParameters(map, rows, &parameters); !s.ok()) return s;
  if (parameters.worker_kind == WorkerKind::kProcess && parameters.worker.model.empty()) {
    return Status::InvalidArgument(
        "parameter model (or gpt_model_path): not set; it must name a Hugging Face checkpoint");
  }
  return parameters;
}

}  // namespace slipstream::triton
