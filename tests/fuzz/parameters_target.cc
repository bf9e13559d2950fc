// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/parameters.h"

#include <string>
#include <string_view>
#include <vector>

#include "input_bytes.h"
#include "targets.h"

namespace slipstream::fuzz {
namespace {

using triton::DetokenizeParameters;
using triton::LlmParameters;
using triton::ParameterMap;
using triton::PipelineParameters;
using triton::TokenizeParameters;

void CheckError(const Status& status) {
  const bool ours =
      status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kUnsupported;
  Require(status.ok() || ours, "a wrong parameter is the caller's");
  Require(status.ok() || status.message().rfind("parameter", 0) == 0, "it names the parameter");
}

void CheckLlm(const LlmParameters& p) {
  const ExecutorConfig& e = p.executor;
  Require(e.max_num_seqs >= 0 && e.max_num_seqs <= 65536, "max_num_seqs");
  Require(e.max_num_tokens >= 0, "max_num_tokens");
  Require(e.pipeline_depth == 1 || e.pipeline_depth == 2, "pipeline_depth");
  Require(e.max_queue_requests >= 0 && e.max_queue_tokens >= 0, "queue");
  Require(e.priority_ageing_ms >= 0 && e.watchdog_ms >= 0 && e.max_restarts >= 0, "times");
  Require(e.restart_backoff_ms >= 0 && e.max_logprobs >= 0, "back-off");
  const auto& w = p.worker;
  Require(w.tokens_per_block >= 1 && w.tokens_per_block <= 4096, "tokens_per_block");
  Require(w.kv_cache_bytes >= 0 && w.kv_cache_tokens >= 0 && w.max_seq_len >= 0, "sizes");
  Require(w.kv_cache_fraction >= 0 && w.kv_cache_fraction <= 1, "kv_cache_fraction");
  Require(p.flow_window >= 1 && p.cancellation_check_period_ms >= 1, "periods");
  for (const int64_t window : p.attention_windows) Require(window >= 1, "a window");
}

// Lines "key=value".
void Run(const uint8_t* data, size_t size) {
  std::string_view text = AsText(data, size);
  ParameterMap map;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string line(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const size_t equals = line.find('=');
    if (equals != std::string::npos) map[line.substr(0, equals)] = line.substr(equals + 1);
  }
  const auto llm = LlmParameters::FromMap(map);
  CheckError(llm.status());
  if (llm.ok()) CheckLlm(*llm);
  const auto tokenize = TokenizeParameters::FromMap(map);
  CheckError(tokenize.status());
  if (tokenize.ok()) Require(tokenize->tokenizer_processes >= 1, "a process");
  CheckError(PipelineParameters::FromMap(map).status());
  CheckError(DetokenizeParameters::FromMap(map).status());
}

std::vector<std::string> Seeds() {
  return {
      "role=llm\nmodel=/m\nmax_num_seqs=16\nmax_num_tokens=2048\nscheduler_policy=max_utilization\n"
      "kv_cache_fraction=0.5\npipeline_depth=2\nexclude_input_in_output=true\nflow_window=8",
      "worker=scripted\nscripted={\"emit\": \"echo\"}\nwatchdog_ms=1000\nmax_restarts=3",
      "gpt_model_type=inflight_fused_batching\ngpt_model_path=/m\nmax_beam_width=1\n"
      "max_tokens_in_paged_kv_cache=8192\nkv_cache_free_gpu_mem_fraction=0.9\n"
      "enable_kv_cache_reuse=True\nbatch_scheduler_policy=guaranteed_no_evict\n"
      "max_attention_window_size=4096,1024\ngpu_device_ids=0\ndecoding_mode=top_k_top_p",
      "role=tokenize\ntokenizer_dir=/t\ntokenizer_processes=2\nadd_special_tokens=false",
      "role=pipeline\ntokenizer=/t\nllm_model_name=llm\nallow_special=auto",
      "role=detokenize\ntokenizer_dir=/t\nskip_special_tokens=true"};
}

}  // namespace

FuzzTarget ParametersTarget() { return {"parameters", Run, Seeds}; }

}  // namespace slipstream::fuzz
