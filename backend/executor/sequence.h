// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "executor/event.h"
#include "executor/kv_groups.h"
#include "executor/request.h"
#include "executor/sequence_output.h"

namespace slipstream {

struct Sequence;

// One accepted request: its sequences share the prompt and end independently.
struct RequestState {
  RequestId id = 0;
  Request request;
  TimeNs arrival = 0;
  std::vector<std::unique_ptr<Sequence>> sequences;
  int32_t unfinished = 0;
  int32_t losses = 0;      // worker deaths it was in flight at since its last token
  uint64_t lost_step = 0;  // so that one death counts once
};

// The Engine's view of one sequence. Progress is two numbers: `scheduled` positions (sent to the
// worker, computed or about to be) chase `tokens.size() + pending` (known tokens, and sampled ones
// whose value only the worker knows yet). Prefill, decode and resumption differ in nothing else.
struct Sequence {
  enum class State : uint8_t { kWaiting, kRunning, kFinished };

  RequestState* request = nullptr;
  int32_t index = 0;
  uint64_t order = 0;  // arrival order, the tie-break everywhere
  int32_t rank = 0;    // priority class when it was last admitted, ageing included
  State state = State::kWaiting;
  bool preempting = false;      // gives its blocks back once no step in flight names it
  std::vector<int32_t> tokens;  // prompt, then generated
  int32_t prompt_len = 0;
  int32_t limit = 0;      // positions that ever need KV: the last generated token does not
  int32_t max_len = 0;    // prompt + the most that may be generated
  int32_t scheduled = 0;  // positions sent to the worker since the last (re)admission
  int32_t pending = 0;    // samples in flight
  int32_t in_flight = 0;  // steps in flight that name this sequence
  int32_t slot = -1;
  uint64_t last_step = 0;  // the last step that named it
  bool admitted_before = false;
  bool context_logits_done = false;
  SequenceKv kv;
  SequenceOutput output;
  // Accounting.
  int32_t cached_tokens = 0;   // prompt tokens not computed thanks to reuse
  int32_t cached_counted = 0;  // of them, those already in the metrics
  bool queue_observed = false;
  PerfMetrics perf;
  TimeNs last_token_at = 0;

  Sequence(RequestState* owner, int32_t sequence_index, SequenceOutput out)
      : request(owner), index(sequence_index), output(std::move(out)) {}

  const RequestSpec& spec() const { return request->request.spec(); }
  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_generated() const { return num_tokens() - prompt_len; }
  // Positions that could be scheduled now.
  int32_t remaining() const { return std::min(num_tokens() + pending, limit) - scheduled; }
  bool finished() const { return state == State::kFinished; }
};

}  // namespace slipstream
