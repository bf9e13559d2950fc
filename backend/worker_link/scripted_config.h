// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/kv_group.h"
#include "executor/status.h"

namespace slipstream {

enum class EmitRule : uint8_t {
  kEcho,      // the i-th generated token is prompt[i % prompt_len]
  kCount,     // (count_start + i) % vocab_size
  kConstant,  // constant_token
  kSeeded,    // SeededToken(the sequence's seed, i)
};

// What a scripted model pretends to be and what it does. The JSON keys are the members' names;
// `emit` is "echo", "count", "constant" or "seeded".
struct ScriptedWorkerConfig {
  // What WorkerInfo says.
  int32_t vocab_size = 32000;
  int32_t max_seq_len = 4096;
  int32_t num_blocks = 4096;
  int32_t tokens_per_block = 32;
  int64_t bytes_per_block = 0;
  // In place of the one full group that num_blocks and bytes_per_block describe; in JSON a list of
  // {"kind": "full" | "sliding" | "chunked", "window", "num_blocks", "bytes_per_block"}.
  std::vector<KvGroup> kv_groups;
  std::vector<int32_t> end_ids = {2};
  int32_t pad_id = -1;
  std::string model_name = "scripted";
  std::string token_table;  // bytes; in JSON `token_table_file` names a file that holds them

  // Experts, of which one computes each token in every such layer: that of its position modulo
  // num_experts.
  std::vector<int32_t> expert_layers;
  int32_t num_experts = 0;

  // Limits that plans are held to; 0 = none.
  int32_t max_num_seqs = 0;    // sequences of one step
  int32_t max_num_tokens = 0;  // tokens of one step

  EmitRule emit = EmitRule::kEcho;
  int32_t count_start = 0;
  int32_t constant_token = 0;
  // The end_after-th token is end_ids[0] (later while min_tokens masks it), whatever the rule
  // says; 0 = never.
  int32_t end_after = 0;

  // Time. A step is ready step_us after it could begin: when it was sent or when the step before
  // it was ready, whichever is later. A uniform draw from [0, step_jitter_us] is added.
  int64_t step_us = 0;
  int64_t step_jitter_us = 0;
  uint64_t seed = 0;     // of the jitter
  int64_t start_ms = 0;  // how long Start pretends to load

  // Faults, at the n-th step (from 1) after a start; 0 = never. They strike in the first
  // fault_count successful starts.
  int64_t fail_at_step = 0;   // the worker reports an error
  int64_t die_at_step = 0;    // the worker is gone without a word
  int64_t stall_at_step = 0;  // the worker never answers again
  int32_t fault_count = 1;
  int32_t fail_starts = 0;  // so many calls of Start fail first

  std::vector<KvGroup> Groups() const;

  // Unknown keys, wrong types and values out of range are kInvalidArgument naming the key.
  static StatusOr<ScriptedWorkerConfig> FromJson(const std::string& text);
};

}  // namespace slipstream
