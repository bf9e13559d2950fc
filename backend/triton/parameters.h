// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "executor/engine_config.h"
#include "executor/status.h"

namespace slipstream::triton {

using ParameterMap = std::map<std::string, std::string>;

// A process that runs Python: which interpreter. Empty: the environment variable SLIPSTREAM_PYTHON,
// else python3 on PATH.
struct PythonParameters {
  std::string executable;
};

// What the worker is told; the names are those of its configuration message.
struct WorkerParameters {
  std::string model;      // Hugging Face directory or hub id
  std::string tokenizer;  // likewise; empty: the model's
  std::string revision;
  std::string dtype = "auto";
  std::string device = "auto";
  std::string load_format = "auto";
  std::string model_impl = "auto";
  bool trust_remote_code = false;
  int32_t num_threads = 0;
  bool cuda_graphs = true;
  std::string attention_backend = "auto";
  bool deterministic = false;
  int64_t seed = 0;
  int32_t tokens_per_block = 32;
  int32_t max_seq_len = 0;  // 0 = the checkpoint's
  std::string kv_cache_dtype = "auto";
  int64_t kv_cache_bytes = 0;
  int64_t kv_cache_tokens = 0;
  double kv_cache_fraction = 0;  // 0: the worker chooses
};

enum class WorkerKind : uint8_t { kProcess, kScripted };

// Parameters of role `llm`: our own names, and the keys of TensorRT-LLM's in-flight batching
// backend mapped to the same settings. parameters.cc holds the one table.
struct LlmParameters {
  WorkerKind worker_kind = WorkerKind::kProcess;
  std::string scripted = "{}";  // JSON for ScriptedWorker
  PythonParameters python;
  WorkerParameters worker;
  ExecutorConfig executor;
  bool exclude_input_in_output = false;
  std::optional<bool> skip_special_tokens;  // unset: as models of role `detokenize`
  int32_t cancellation_check_period_ms = 25;
  int32_t stats_check_period_ms = 100;
  int32_t drain_timeout_ms = 30000;
  // Whether a dead model ends the process; unset: only one that the server goes on calling ready,
  // where no other model lives.
  std::optional<bool> exit_on_fatal;
  int32_t flow_window = 32;  // unacknowledged responses of one stream through an ensemble
  // Sliding windows asked for in the configuration: they can be honoured only if none is shorter
  // than the model's context, which is known after loading.
  std::vector<int64_t> attention_windows;
  std::vector<std::string> without_effect;  // "key (why)": accepted, to be logged once

  static StatusOr<LlmParameters> FromMap(const ParameterMap& map);
};

struct TokenizerParameters {
  std::string tokenizer;  // directory
  std::string revision;
  bool trust_remote_code = false;
  PythonParameters python;
};

struct TokenizeParameters {
  TokenizerParameters tokenizer;
  int32_t tokenizer_processes = 1;
  int32_t max_queue_requests = 1024;             // prompts that wait to be tokenized; 0 = unlimited
  int64_t max_queue_bytes = int64_t{256} << 20;  // of their requests' inputs; 0 = unlimited
  bool add_special_tokens = true;
  // Whether text that spells a special token becomes one; unset: in QUERY yes, in MESSAGES no.
  std::optional<bool> allow_special;
  std::vector<std::string> without_effect;

  static StatusOr<TokenizeParameters> FromMap(const ParameterMap& map);
};

// Without a tokenizer it is the llm's.
struct PipelineParameters : TokenizeParameters {
  std::string llm_model_name = "llm";   // the model of role llm that serves the requests
  std::string tensorrt_llm_model_name;  // the same, of `tensorrt_llm_bls`; goes first if set
  bool accumulate_tokens = false;       // a streamed response holds the whole text so far

  const std::string& llm() const {
    return tensorrt_llm_model_name.empty() ? llm_model_name : tensorrt_llm_model_name;
  }

  static StatusOr<PipelineParameters> FromMap(const ParameterMap& map);
};

struct DetokenizeParameters {
  TokenizerParameters tokenizer;
  bool skip_special_tokens = true;
  std::vector<std::string> without_effect;

  static StatusOr<DetokenizeParameters> FromMap(const ParameterMap& map);
};

}  // namespace slipstream::triton
