// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "executor/admission.h"
#include "executor/event.h"
#include "executor/expert_load.h"

namespace slipstream {

// A cumulative histogram with fixed upper bounds; one owner thread, copied out in snapshots.
struct Histogram {
  std::vector<double> bounds;    // ascending upper bounds; +Inf is implied
  std::vector<uint64_t> counts;  // bounds.size() + 1, not cumulative
  double sum = 0;
  uint64_t count = 0;

  Histogram() = default;
  explicit Histogram(std::vector<double> upper_bounds);
  void Observe(double value);
};

// Counters since start and gauges now. Reading it costs one copy; what it refers to never changes.
struct MetricsSnapshot {
  // Gauges.
  int32_t running = 0;    // admitted sequences that have not ended
  int32_t waiting = 0;    // queued sequences, preempted ones included
  int32_t preempted = 0;  // of the waiting ones, those that had been running
  int64_t waiting_tokens = 0;
  ClassLoads waiting_fresh{};  // of the waiting ones, those that never ran, by priority class
  int32_t max_num_seqs = 0;
  int32_t scheduled = 0;         // sequences in the last step
  int32_t context_requests = 0;  // of those, still in their prompt
  int32_t generation_requests = 0;
  int32_t context_tokens = 0;  // prompt tokens in the last step
  int32_t step_in_flight = 0;
  // KV blocks of the full group, or of the first where a model has none.
  int32_t kv_blocks_total = 0;
  int32_t kv_blocks_used = 0;    // referenced by live sequences
  int32_t kv_blocks_cached = 0;  // reusable, referenced by none
  int32_t kv_blocks_free = 0;    // total - used - cached
  int32_t tokens_per_block = 0;
  int64_t kv_bytes = 0;       // of all groups
  int64_t kv_bytes_used = 0;  // likewise
  // Counters.
  uint64_t steps = 0;
  uint64_t requests_accepted = 0;
  uint64_t requests_rejected = 0;   // by admission control
  uint64_t requests_displaced = 0;  // accepted, then out of a full queue for a better class
  std::array<uint64_t, kNumFinishReasons> finished{};  // by FinishReason, sequences
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t kv_hit_tokens = 0;     // prompt tokens not computed thanks to reuse
  uint64_t kv_lookup_tokens = 0;  // prompt tokens of admitted sequences
  uint64_t kv_reused_blocks = 0;
  uint64_t kv_evicted_blocks = 0;
  uint64_t preemptions = 0;
  uint64_t worker_restarts = 0;
  // Histograms.
  Histogram time_to_first_token_s;
  Histogram inter_token_latency_s;
  Histogram queue_time_s;
  Histogram e2e_latency_s;
  Histogram input_tokens;   // buckets 10, 50, 100, 500, 1000
  Histogram output_tokens;  // likewise
  // As far as the worker has told; over all its restarts. Null without experts.
  std::shared_ptr<const ExpertLoad> expert_load;
};

// Gives every histogram of a fresh snapshot its buckets.
void InitHistograms(MetricsSnapshot* snapshot);

}  // namespace slipstream
