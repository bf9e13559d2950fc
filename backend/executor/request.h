// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "executor/block_hash.h"
#include "executor/status.h"
#include "executor/stop_matcher.h"

namespace slipstream {

using RequestId =
    uint64_t;            // assigned by the Executor, never reused; client ids need not be unique
using TimeNs = int64_t;  // CLOCK_MONOTONIC, nanoseconds
inline constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

// What one sequence samples with. The values are resolved: defaults applied, ranges checked.
struct SamplingParams {
  float temperature = 0.0f;  // 0 = greedy
  int32_t top_k = 0;         // 0 = no limit
  float top_p = 1.0f;        // 1 = no limit
  float min_p = 0.0f;        // 0 = off
  // Top-p decay (factual-nucleus sampling): p_t = max(top_p * decay^t, top_p_min); t restarts
  // after top_p_reset_id was generated.
  float top_p_decay = 1.0f;
  float top_p_min = 0.0f;
  int32_t top_p_reset_id = -1;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t prompt_ignore_length = 0;  // leading prompt tokens that the penalties do not see
  int32_t min_tokens = 0;            // end ids are masked until this many tokens were generated
  uint64_t seed = 0;                 // used when has_seed; otherwise fresh entropy is drawn
  bool has_seed = false;
};

// KV retention of [start, end) of the prompt; `end` < 0 = to the end.
struct RetentionRange {
  int32_t start = 0;
  int32_t end = -1;
  int32_t priority = 35;     // 0..100; higher stays longer
  int32_t duration_ms = -1;  // -1 = the priority never expires
};

struct Retention {
  std::vector<RetentionRange> prompt;
  int32_t decode_priority = 35;
  int32_t decode_duration_ms = -1;
};

// Base of whatever the front end attaches to a request; it comes back with every event.
class ClientContext {
 public:
  virtual ~ClientContext() = default;
};

// What a client asked for, as read from the wire: anything may be in here.
struct RequestSpec {
  std::string client_id;  // echoed; may be empty, long, unicode or shared by many requests
  std::vector<int32_t> prompt;
  int32_t max_new_tokens = 0;
  SamplingParams sampling;
  std::vector<int32_t> end_ids;  // generation stops after any of these; empty = none
  std::vector<std::vector<int32_t>> stop_sequences;  // token sequences; kept in the output
  std::vector<std::string> stop_strings;             // cut from the text unless include_stop
  bool include_stop = false;
  std::vector<std::vector<int32_t>> bad_words;        // token sequences never completed
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logits
  int32_t num_return_sequences = 1;
  int32_t num_logprobs = -1;  // -1 = none, 0 = chosen token, k = chosen and the k most likely
  bool return_context_logits = false;
  bool return_generation_logits = false;
  bool return_text = false;  // events carry text; needs a token table
  bool skip_special_tokens = true;
  bool streaming = false;         // false: one event, at the end, carries everything
  int32_t priority = 0;           // 0 is served first .. 9
  TimeNs deadline = kNever;       // whether queued or running, the request ends then
  std::optional<TimeNs> arrival;  // when the client asked, for what is told of it; unset: Submit()
  uint64_t cache_salt = 0;        // requests share cached KV only with equal salts
  Retention retention;
  std::shared_ptr<ClientContext> context;
};

inline constexpr char kDeadlinePassed[] = "the request's deadline (timeout) passed";

// What the loaded model and the configuration allow; the numbers that error messages name.
struct RequestLimits {
  int32_t vocab_size = 0;
  int32_t max_seq_len = 0;         // prompt + generated tokens
  int64_t kv_capacity_tokens = 0;  // the full group's pool; a longer request can never run
  int32_t max_prompt_tokens = 0;   // without chunked prefill: the step's token budget; else 0
  int32_t max_queue_requests = 0;  // sequences and prompt tokens that may wait: a request with more
  int64_t max_queue_tokens = 0;    // than that can never be accepted; 0: unlimited
  int32_t tokens_per_block = 32;
  int32_t max_logprobs = 64;
  int32_t max_return_sequences = 64;
  int32_t max_stop_entries = 256;               // per list
  int32_t max_stop_bytes = 16384;               // all stop strings together
  int64_t max_logits_bytes = int64_t{1} << 30;  // context or generation logits of one request
  bool has_token_table = false;
  bool wrap_out_of_vocab_ids = false;  // prompt ids outside the vocabulary: modulo, not refused
};

// A request that can be served: only Create() makes one, so nothing behind it checks again.
class Request {
 public:
  // Errors name the field (by its wire name), the value and the limit.
  static StatusOr<Request> Create(RequestSpec spec, const RequestLimits& limits);

  const RequestSpec& spec() const { return spec_; }
  int32_t prompt_len() const { return static_cast<int32_t>(spec_.prompt.size()); }
  // Penalties, bad words and top-p decay look at earlier tokens: the worker needs them at
  // admission.
  bool needs_history() const { return needs_history_; }
  // One hash per full block of the prompt, computed on the submitting thread.
  const std::vector<BlockHash>& block_hashes() const { return block_hashes_; }
  // The compiled forms of spec().stop_sequences and spec().stop_strings; null when there are none.
  const std::shared_ptr<const TokenStopSequences>& stop_sequences() const {
    return stop_sequences_;
  }
  const std::shared_ptr<const StopStrings>& stop_strings() const { return stop_strings_; }

 private:
  explicit Request(RequestSpec spec);
  Status CompileStops();

  RequestSpec spec_;
  bool needs_history_ = false;
  std::vector<BlockHash> block_hashes_;
  std::shared_ptr<const TokenStopSequences> stop_sequences_;
  std::shared_ptr<const StopStrings> stop_strings_;
};

}  // namespace slipstream
