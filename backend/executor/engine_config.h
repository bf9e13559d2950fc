// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace slipstream {

enum class SchedulerPolicy : uint8_t {
  // A sequence starts only when every running one can surely finish: nothing is ever preempted.
  kGuaranteedNoEvict,
  // Sequences start while blocks are left; when they run out the youngest is preempted and
  // recomputed later.
  kMaxUtilization,
};

// A sequence that has ended, or that gives way, keeps its slot until the steps in flight that name
// it have answered; meanwhile another one takes its place in the steps that follow.
constexpr int32_t kSlotsPerSeq = 2;

struct ExecutorConfig {
  int32_t max_num_seqs = 64;      // sequences of one step; 0 = the worker decides
  int32_t max_num_tokens = 2048;  // token budget of one step; 0 = the worker decides
  SchedulerPolicy policy = SchedulerPolicy::kGuaranteedNoEvict;
  bool enable_chunked_prefill = true;
  bool enable_prefix_reuse = true;
  bool enable_partial_reuse = true;   // reuse the leading tokens of a block by copying it
  int32_t pipeline_depth = 2;         // steps in flight
  int32_t max_queue_requests = 1024;  // waiting sequences; 0 = unlimited
  int64_t max_queue_tokens = 0;       // their prompt tokens; 0 = unlimited
  int32_t priority_ageing_ms = 5000;  // waiting this long raises a request by one class; 0 = never
  int32_t watchdog_ms = 60000;  // a step without an answer for so long: the worker hangs; 0 = off
  int32_t max_restarts = 3;     // consecutive; a step that completes resets the count
  int32_t restart_backoff_ms = 200;  // doubled with every consecutive failure, at most 10 s
  bool wrap_out_of_vocab_ids = false;
  int32_t max_logprobs = 64;
  bool send_history = false;  // every sequence's tokens at admission: the worker asked for them
};

}  // namespace slipstream
