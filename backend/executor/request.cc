// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/request.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace slipstream {
namespace {

// Collects the first violation; messages have the form "field: value (must be …)".
class Checker {
 public:
  template <typename T>
  void Range(const char* field, T value, T low, T high) {
    if (failed() || (value >= low && value <= high)) return;  // NaN fails both comparisons
    std::ostringstream m;
    m << field << ": " << value << " is outside [" << low << ", " << high << "]";
    Fail(m.str());
  }
  void Finite(const char* field, float value) {
    if (failed() || std::isfinite(value)) return;
    std::ostringstream m;
    m << field << ": " << value << " is not a finite number";
    Fail(m.str());
  }
  void Fail(const std::string& message) {
    if (!failed()) status_ = Status::InvalidArgument(message);
  }
  bool failed() const { return !status_.ok(); }
  const Status& status() const { return status_; }

 private:
  Status status_;
};

void CheckSampling(const SamplingParams& s, Checker* check) {
  check->Finite("temperature", s.temperature);
  check->Range("temperature", s.temperature, 0.0f, 1000.0f);
  check->Range("runtime_top_k (top_k)", s.top_k, 0, std::numeric_limits<int32_t>::max());
  check->Range("runtime_top_p (top_p)", s.top_p, 0.0f, 1.0f);
  check->Range("min_p", s.min_p, 0.0f, 1.0f);
  check->Range("runtime_top_p_decay", s.top_p_decay, 1e-6f, 1.0f);
  check->Range("runtime_top_p_min", s.top_p_min, 0.0f, 1.0f);
  check->Finite("repetition_penalty", s.repetition_penalty);
  if (!(s.repetition_penalty > 0.0f)) {
    check->Fail("repetition_penalty: " + std::to_string(s.repetition_penalty) + " must be > 0");
  }
  check->Finite("presence_penalty", s.presence_penalty);
  check->Finite("frequency_penalty", s.frequency_penalty);
  check->Range("prompt_ignore_length", s.prompt_ignore_length, 0,
               std::numeric_limits<int32_t>::max());
  check->Range("min_tokens", s.min_tokens, 0, std::numeric_limits<int32_t>::max());
}

void CheckIds(const char* field, const std::vector<int32_t>& ids, int32_t vocab, Checker* check) {
  for (size_t i = 0; i < ids.size() && !check->failed(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      check->Fail(std::string(field) + ": token id " + std::to_string(ids[i]) + " at position " +
                  std::to_string(i) + " is outside [0, " + std::to_string(vocab) + ")");
    }
  }
}

void CheckWordList(const char* field, const std::vector<std::vector<int32_t>>& words,
                   const RequestLimits& limits, Checker* check) {
  check->Range(field, static_cast<int32_t>(std::min<size_t>(words.size(), 1 << 30)), 0,
               limits.max_stop_entries);
  for (const auto& word : words) {
    if (word.empty()) check->Fail(std::string(field) + ": an entry is empty");
    CheckIds(field, word, limits.vocab_size, check);
  }
}

void CheckStops(const RequestSpec& spec, const RequestLimits& limits, Checker* check) {
  CheckWordList("stop_words_list", spec.stop_sequences, limits, check);
  CheckWordList("bad_words_list", spec.bad_words, limits, check);
  check->Range("stop_strings",
               static_cast<int32_t>(std::min<size_t>(spec.stop_strings.size(), 1 << 30)), 0,
               limits.max_stop_entries);
  size_t bytes = 0;
  for (const auto& stop : spec.stop_strings) bytes += stop.size();
  if (bytes > static_cast<size_t>(limits.max_stop_bytes)) {
    check->Fail("stop_strings: " + std::to_string(bytes) + " bytes in all exceed the limit of " +
                std::to_string(limits.max_stop_bytes));
  }
}

void CheckRetention(const Retention& retention, Checker* check) {
  for (const auto& range : retention.prompt) {
    check->Range("retention_token_range_priorities", range.priority, 0, 100);
    check->Range("retention_token_range_starts", range.start, 0,
                 std::numeric_limits<int32_t>::max());
    check->Range("retention_token_range_durations_ms", range.duration_ms, -1,
                 std::numeric_limits<int32_t>::max());
    if (range.end >= 0 && range.end <= range.start) {
      check->Fail("retention_token_range_ends: " + std::to_string(range.end) +
                  " must be -1 or greater than its start " + std::to_string(range.start));
    }
  }
  check->Range("retention_decode_priority", retention.decode_priority, 0, 100);
  check->Range("retention_decode_duration_ms", retention.decode_duration_ms, -1,
               std::numeric_limits<int32_t>::max());
}

void CheckLength(const RequestSpec& spec, const RequestLimits& limits, Checker* check) {
  const auto prompt = static_cast<int64_t>(spec.prompt.size());
  if (prompt == 0) check->Fail("input_ids: the prompt is empty (at least 1 token is needed)");
  if (spec.max_new_tokens < 1) {
    check->Fail("request_output_len (max_tokens): " + std::to_string(spec.max_new_tokens) +
                " must be at least 1");
  }
  const int64_t total = prompt + spec.max_new_tokens;
  const std::string sum = std::to_string(prompt) + " prompt tokens + " +
                          std::to_string(spec.max_new_tokens) + " request_output_len (max_tokens)";
  if (total > limits.max_seq_len) {
    check->Fail("input_ids: " + sum + " = " + std::to_string(total) +
                " exceed the model's max_seq_len of " + std::to_string(limits.max_seq_len));
  }
  if (total - 1 > limits.kv_capacity_tokens) {
    check->Fail("input_ids: " + sum + " need KV for " + std::to_string(total - 1) +
                " tokens, more than the whole KV cache holds (" +
                std::to_string(limits.kv_capacity_tokens) + ")");
  }
  if (limits.max_prompt_tokens > 0 && prompt > limits.max_prompt_tokens) {
    check->Fail("input_ids: " + std::to_string(prompt) + " prompt tokens exceed max_num_tokens = " +
                std::to_string(limits.max_prompt_tokens) + " (enable_chunked_context is off)");
  }
}

// What could not wait even in an empty queue is refused for good, not as overload.
void CheckQueueBounds(const RequestSpec& spec, const RequestLimits& limits, Checker* check) {
  const int64_t sequences = spec.num_return_sequences;
  const int64_t tokens = sequences * static_cast<int64_t>(spec.prompt.size());
  if (limits.max_queue_requests > 0 && sequences > limits.max_queue_requests) {
    check->Fail(
        "num_return_sequences: " + std::to_string(sequences) +
        " sequences exceed max_queue_requests = " + std::to_string(limits.max_queue_requests));
  }
  if (limits.max_queue_tokens > 0 && tokens > limits.max_queue_tokens) {
    check->Fail("input_ids: " + std::to_string(tokens) +
                " prompt tokens (of all num_return_sequences) exceed max_queue_tokens = " +
                std::to_string(limits.max_queue_tokens));
  }
}

void CheckOutputs(const RequestSpec& spec, const RequestLimits& limits, Checker* check) {
  check->Range("num_logprobs", spec.num_logprobs, -1, limits.max_logprobs);
  check->Range("num_logprobs", spec.num_logprobs, -1, limits.vocab_size);
  check->Range("num_return_sequences", spec.num_return_sequences, 1, limits.max_return_sequences);
  check->Range("priority", spec.priority, 0, 9);
  const int64_t context = spec.return_context_logits ? static_cast<int64_t>(spec.prompt.size()) : 0;
  const int64_t generated =
      spec.return_generation_logits ? int64_t{spec.num_return_sequences} * spec.max_new_tokens : 0;
  if (int64_t{4} * limits.vocab_size * (context + generated) > limits.max_logits_bytes) {
    check->Fail(std::string(context > 0 ? "return_context_logits" : "return_generation_logits") +
                ": " + std::to_string(context + generated) +
                " rows of logits exceed the limit of " + std::to_string(limits.max_logits_bytes) +
                " bytes");
  }
}

bool SeesHistory(const SamplingParams& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f ||
         s.frequency_penalty != 0.0f || s.top_p_decay != 1.0f;
}

}  // namespace

Request::Request(RequestSpec spec) : spec_(std::move(spec)) {
  needs_history_ = SeesHistory(spec_.sampling) || !spec_.bad_words.empty();
}

Status Request::CompileStops() {
  if (!spec_.stop_sequences.empty()) {
    auto sequences = TokenStopSequences::Create(spec_.stop_sequences);
    if (!sequences.ok()) return sequences.status();
    stop_sequences_ = std::move(*sequences);
  }
  if (!spec_.stop_strings.empty()) {
    auto strings = StopStrings::Create(spec_.stop_strings, spec_.include_stop);
    if (!strings.ok()) {
      return Status(strings.status().code(), "stop_strings: " + strings.status().message());
    }
    stop_strings_ = std::move(*strings);
  }
  return Status::Ok();
}

StatusOr<Request> Request::Create(RequestSpec spec, const RequestLimits& limits) {
  if (limits.wrap_out_of_vocab_ids) {
    for (int32_t& id : spec.prompt)
      id = static_cast<int32_t>(static_cast<uint32_t>(id) % limits.vocab_size);
  }
  Checker check;
  CheckLength(spec, limits, &check);
  CheckIds("input_ids", spec.prompt, limits.vocab_size, &check);
  CheckIds("end_id", spec.end_ids, limits.vocab_size, &check);
  CheckSampling(spec.sampling, &check);
  CheckStops(spec, limits, &check);
  CheckRetention(spec.retention, &check);
  CheckOutputs(spec, limits, &check);
  CheckQueueBounds(spec, limits, &check);
  check.Range("runtime_top_p_reset_ids", spec.sampling.top_p_reset_id, -1, limits.vocab_size - 1);
  for (const auto& [id, bias] : spec.logit_bias) {
    check.Range("embedding_bias", id, 0, limits.vocab_size - 1);
    check.Finite("embedding_bias", bias);
  }
  if (check.failed()) return check.status();
  if ((spec.return_text || !spec.stop_strings.empty()) && !limits.has_token_table) {
    return Status::Unsupported(std::string(spec.return_text ? "return_text" : "stop_strings") +
                               ": the model was loaded without a tokenizer");
  }
  Request request(std::move(spec));
  const Status stops = request.CompileStops();
  if (!stops.ok()) return stops;
  if (!request.spec_.return_context_logits) {
    ExtendBlockHashes(request.spec_.cache_salt, request.spec_.prompt.data(), request.prompt_len(),
                      limits.tokens_per_block, &request.block_hashes_);
  }
  return request;
}

}  // namespace slipstream
