// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/process_factory.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "triton/error.h"
#include "worker_link/process_worker.h"
#include "worker_link/scripted_worker.h"

#ifndef SLIPSTREAM_VERSION
#define SLIPSTREAM_VERSION "unknown"
#endif

namespace slipstream::triton {
namespace {

// The parameter, else SLIPSTREAM_PYTHON, else python3 on PATH.
std::string PythonExecutable(const PythonParameters& parameters) {
  if (!parameters.executable.empty()) return parameters.executable;
  const char* from_environment = std::getenv("SLIPSTREAM_PYTHON");
  if (from_environment != nullptr && *from_environment != '\0') return from_environment;
  return "python3";
}

nlohmann::json WorkerConfig(const LlmParameters& parameters) {
  const WorkerParameters& worker = parameters.worker;
  nlohmann::json config = {
      {"version", SLIPSTREAM_VERSION},
      {"model", worker.model},
      {"tokenizer", worker.tokenizer},
      {"dtype", worker.dtype},
      {"device", worker.device},
      {"load_format", worker.load_format},
      {"model_impl", worker.model_impl},
      {"trust_remote_code", worker.trust_remote_code},
      {"num_threads", worker.num_threads},
      {"cuda_graphs", worker.cuda_graphs},
      {"attention_backend", worker.attention_backend},
      {"deterministic", worker.deterministic},
      {"seed", worker.seed},
      {"tokens_per_block", worker.tokens_per_block},
      {"max_num_seqs", parameters.executor.max_num_seqs},
      {"max_num_tokens", parameters.executor.max_num_tokens},
      {"max_seq_len", worker.max_seq_len},
      {"kv_cache_dtype", worker.kv_cache_dtype},
      {"kv_cache_bytes", worker.kv_cache_bytes},
      {"kv_cache_tokens", worker.kv_cache_tokens},
      {"kv_cache_fraction", worker.kv_cache_fraction},
      {"rank", 0},
      {"world_size", 1},
  };
  if (!worker.revision.empty()) config["revision"] = worker.revision;
  return config;
}

}  // namespace

StatusOr<std::unique_ptr<WorkerPort>> MakeWorkerPort(const LlmParameters& parameters) {
  if (parameters.worker_kind == WorkerKind::kScripted) {
    auto config = ScriptedWorkerConfig::FromJson(parameters.scripted);
    if (!config.ok()) {
      return Status::InvalidArgument("parameter scripted: " + config.status().message());
    }
    return std::unique_ptr<WorkerPort>(std::make_unique<ScriptedWorker>(std::move(config).value()));
  }
  ProcessWorkerConfig config;
  config.python = PythonExecutable(parameters.python);
  config.config = WorkerConfig(parameters);
  config.log = [](const std::string& line) { LogError(line); };
  return std::unique_ptr<WorkerPort>(std::make_unique<ProcessWorker>(std::move(config)));
}

StatusOr<std::unique_ptr<TokenizerPool>> MakeTokenizerPool(const TokenizerParameters& parameters,
                                                           int32_t num_processes) {
  TokenizerPoolConfig config;
  config.python = PythonExecutable(parameters.python);
  config.version = SLIPSTREAM_VERSION;
  config.tokenizer = parameters.tokenizer;
  config.revision = parameters.revision;
  config.trust_remote_code = parameters.trust_remote_code;
  config.num_processes = num_processes;
  config.log = [](const std::string& line) { LogError(line); };
  return TokenizerPool::Create(std::move(config));
}

StatusOr<std::shared_ptr<const TokenTable>> LoadTokenTable(const TokenizerParameters& parameters) {
  const auto pool = MakeTokenizerPool(parameters, 1);
  if (!pool.ok()) return pool.status();
  const std::string& table = (*pool)->info().token_table;
  if (table.empty()) {
    return Status::Unsupported("parameter tokenizer_dir: the decoder of '" + parameters.tokenizer +
                               "' cannot be exported as a token table");
  }
  return TokenTable::FromMsgpack(table);
}

}  // namespace slipstream::triton
