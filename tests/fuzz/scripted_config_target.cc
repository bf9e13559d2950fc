// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/scripted_config.h"

#include <string>
#include <string_view>
#include <vector>

#include "targets.h"

namespace slipstream::fuzz {
namespace {

void Run(const uint8_t* data, size_t size) {
  const std::string text(AsText(data, size));
  if (text.find("token_table_file") != std::string::npos) return;  // names a file to read
  const auto config = ScriptedWorkerConfig::FromJson(text);
  if (!config.ok()) {
    Require(config.status().code() == StatusCode::kInvalidArgument, "the caller's");
    Require(config.status().message().rfind("scripted worker: ", 0) == 0, "it says of what");
    return;
  }
  Require(config->vocab_size >= 1 && config->max_seq_len >= 2, "sizes");
  Require(config->tokens_per_block >= 1 && config->tokens_per_block <= 1024, "tokens_per_block");
  for (const KvGroup& group : config->Groups()) {
    Require(group.num_blocks >= 1 && group.windowed() == (group.window > 0), "a group");
  }
  for (const int32_t id : config->end_ids) Require(id >= 0 && id < config->vocab_size, "end_ids");
  Require(config->pad_id < config->vocab_size, "pad_id");
  Require(config->constant_token < config->vocab_size, "constant_token");
  Require(config->end_after == 0 || !config->end_ids.empty(), "end_after");
  Require(config->expert_layers.empty() == (config->num_experts == 0), "experts");
  Require(config->step_us >= 0 && config->step_jitter_us >= 0 && config->start_ms >= 0, "times");
}

std::vector<std::string> Seeds() {
  return {"{}", R"({"emit": "count", "count_start": 5, "vocab_size": 100, "end_ids": [2, 3],
                    "end_after": 7, "pad_id": 0, "max_seq_len": 64, "num_blocks": 32,
                    "tokens_per_block": 4, "bytes_per_block": 10, "model_name": "m"})",
          R"({"kv_groups": [{"kind": "full", "num_blocks": 64, "bytes_per_block": 1},
                            {"kind": "sliding", "window": 8, "num_blocks": 40},
                            {"kind": "chunked", "window": 8, "num_blocks": 40}]})",
          R"({"step_us": 20, "step_jitter_us": 5, "seed": 1, "start_ms": 1, "fail_at_step": 3,
              "die_at_step": 4, "stall_at_step": 5, "fault_count": 2, "fail_starts": 1})",
          R"({"expert_layers": [0, 2], "num_experts": 8, "max_num_seqs": 4,
              "max_num_tokens": 64, "emit": "constant", "constant_token": 9})"};
}

}  // namespace

FuzzTarget ScriptedConfigTarget() { return {"scripted_config", Run, Seeds}; }

}  // namespace slipstream::fuzz
