// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/worker_messages.h"

#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "worker_link/child_link.h"

namespace slipstream {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxExperts = 65536;

KvGroup ReadGroup(MapReader* read) {
  KvGroup group;
  const std::string kind = read->String("kind");
  if (!KvKindFromName(kind, &group.kind)) {
    read->Fail("kind", "is '" + kind + "', must be full, sliding or chunked");
  }
  group.window = static_cast<int32_t>(read->Integer("window", 0, kInt32Max));
  group.num_blocks = static_cast<int32_t>(read->Integer("num_blocks", 1, kInt32Max));
  group.bytes_per_block = read->Integer("bytes_per_block", 0, kInt64Max);
  return group;
}

}  // namespace

StatusOr<WorkerInfo> ParseWorkerHello(const nlohmann::json& hello) {
  MapReader read(hello, "the worker's HELLO");
  WorkerInfo info;
  info.vocab_size = static_cast<int32_t>(read.Integer("vocab_size", 1, kInt32Max));
  info.max_seq_len = static_cast<int32_t>(read.Integer("max_seq_len", 1, kInt32Max));
  info.tokens_per_block = static_cast<int32_t>(read.Integer("tokens_per_block", 1, 65536));
  info.max_num_seqs = static_cast<int32_t>(read.Integer("max_num_seqs", 1, 65536));
  info.max_num_tokens = static_cast<int32_t>(read.Integer("max_num_tokens", 1, kInt32Max));
  info.end_ids = read.Ids("end_ids");
  info.pad_id = static_cast<int32_t>(read.Integer("pad_id", -1, kInt32Max));
  info.wants_history = read.Boolean("wants_history");
  info.token_table = read.Bytes("token_table");
  info.model_name = read.String("model_name");
  info.device = read.String("device");
  info.weight_bytes = read.Integer("weight_bytes", 0, kInt64Max);
  info.expert_layers = read.Ids("expert_layers", "layer numbers");
  info.num_experts = static_cast<int32_t>(
      read.Integer("num_experts", info.expert_layers.empty() ? 0 : 1, kMaxExperts));
  for (const nlohmann::json& map : read.Maps("kv_groups")) {
    MapReader group(map, "kv_groups in the worker's HELLO");
    info.kv_groups.push_back(ReadGroup(&group));
    if (!group.status().ok()) return group.status();
  }
  if (info.kv_groups.empty()) read.Fail("kv_groups", "is empty");
  if (!read.status().ok()) return read.status();
  return info;
}

Status AddWorkerStats(const nlohmann::json& stats, std::vector<uint64_t>* expert_tokens) {
  MapReader read(stats, "the worker's STATS");
  const std::string bytes = read.Bytes("expert_tokens");
  if (const size_t size = expert_tokens->size() * sizeof(uint64_t); bytes.size() != size) {
    read.Fail("expert_tokens",
              "has " + std::to_string(bytes.size()) + " bytes, must have " + std::to_string(size));
  }
  if (!read.status().ok()) return read.status();
  for (size_t i = 0; i < expert_tokens->size(); ++i) {
    uint64_t tokens;
    std::memcpy(&tokens, bytes.data() + i * sizeof tokens, sizeof tokens);
    (*expert_tokens)[i] += tokens;
  }
  return Status::Ok();
}

}  // namespace slipstream
