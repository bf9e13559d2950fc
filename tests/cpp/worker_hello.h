// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

namespace slipstream {

// A group of KV in a HELLO.
inline nlohmann::json GroupMap(const char* kind, int window, int num_blocks) {
  return {{"kind", kind}, {"window", window}, {"num_blocks", num_blocks}, {"bytes_per_block", 64}};
}

// A worker's HELLO with a value for every key. What counts is unsigned, as msgpack reads it.
inline nlohmann::json WorkerHello() {
  return {{"vocab_size", 2000},
          {"max_seq_len", 128},
          {"tokens_per_block", 8},
          {"max_num_seqs", 32u},
          {"max_num_tokens", 256u},
          {"kv_groups", {GroupMap("full", 0, 16), GroupMap("sliding", 24, 9)}},
          {"end_ids", {2u, 3u}},
          {"pad_id", -1},
          {"wants_history", true},
          {"token_table", nlohmann::json::binary({1, 2, 3})},
          {"model_name", "test"},
          {"device", "cpu"},
          {"weight_bytes", 5000000000},
          {"expert_layers", {1u, 4u}},
          {"num_experts", 2}};
}

}  // namespace slipstream
