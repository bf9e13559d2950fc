// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "executor/request.h"
#include "executor/status.h"

namespace slipstream {

enum class FinishReason : uint8_t {
  kNone = 0,      // not finished
  kStop,          // an end id
  kStopSequence,  // a stop token sequence or a stop string
  kLength,        // max_new_tokens, or the model's context is full
  kCancelled,
  kDeadline,
  kError,
};
constexpr size_t kNumFinishReasons = 7;
const char* FinishReasonName(FinishReason reason);  // "stop", "stop_sequence", "length", …

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // every token generated and kept, end id included
  int32_t cached_tokens = 0;      // prompt tokens whose KV was reused at first admission
};

struct PerfMetrics {
  TimeNs arrival_ns = 0;
  TimeNs first_scheduled_ns = 0;
  TimeNs first_token_ns = 0;
  TimeNs last_token_ns = 0;  // 0 until the sequence finished
  int32_t kv_alloc_new_blocks = 0;
  int32_t kv_reused_blocks = 0;
  int32_t kv_alloc_total_blocks = 0;
  int32_t preemptions = 0;
};

// Log probabilities of generated tokens. For token t: entry t*width is the chosen token; the
// following width-1 are the most likely ones, best first.
struct Logprobs {
  int32_t width = 0;  // 0 = not asked for
  std::vector<int32_t> ids;
  std::vector<float> values;
};

// What happened to one sequence since its last event. Streaming: about one per step.
// Not streaming: exactly one, with everything. For each sequence the last event, and only it, has a
// finish reason; for each request exactly one event has `request_done`.
struct Event {
  RequestId request = 0;
  int32_t sequence_index = 0;  // 0 .. num_return_sequences-1
  std::vector<int32_t> tokens;
  std::string text;  // settled text only: whole characters, nothing that could be a stop string
  Logprobs logprobs;
  float cum_logprob = 0.0f;              // of all generated tokens so far, when asked for
  std::vector<float> context_logits;     // [prompt_len, vocab], in the first event that has tokens
  std::vector<float> generation_logits;  // [tokens.size(), vocab]
  FinishReason reason = FinishReason::kNone;
  bool request_done = false;
  std::string stop_reason;  // the stop string that matched, or the end id / sequence in decimal
  Status error;             // for kError, kCancelled and kDeadline
  Usage usage;
  PerfMetrics perf;
  std::shared_ptr<ClientContext> context;
};

// Called on the executor's thread with everything that one step produced. Must not block and must
// not call back into the Executor other than Submit and Cancel.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnEvents(std::vector<Event>&& events) = 0;
};

}  // namespace slipstream
