// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/step_codec.h"

#include <cstring>
#include <string>

namespace slipstream {
namespace {

// The source of padding bytes; never written through.
char kPadding[8] = {};

// Copies arrays out of a payload, one after the other.
class ArrayReader {
 public:
  ArrayReader(const uint8_t* payload, size_t size, size_t offset)
      : payload_(payload), size_(size), offset_(offset) {}

  // False when the payload ends before the array does.
  template <typename T>
  bool Read(uint64_t count, std::vector<T>* values) {
    offset_ = AlignFrameArray(offset_);
    if (offset_ > size_ || count > (size_ - offset_) / sizeof(T)) {
      // An empty array at the end may lack the padding before it.
      values->clear();
      return count == 0;
    }
    values->resize(count);
    if (count > 0) std::memcpy(values->data(), payload_ + offset_, count * sizeof(T));
    offset_ += count * sizeof(T);
    return true;
  }

  bool AtEnd() const { return AlignFrameArray(offset_) >= size_; }

 private:
  const uint8_t* payload_;
  const size_t size_;
  size_t offset_;
};

Status Malformed(const SentStep& step, const std::string& what) {
  return Status::Internal("the worker's answer to step " + std::to_string(step.step_id) +
                          " is malformed: " + what);
}

Status CheckCounts(const SentStep& step, const StepResult& result) {
  if (result.slot != step.slots) return Malformed(step, "its slots are not the plan's");
  size_t tokens = 0;
  size_t logprobs = 0;
  for (size_t i = 0; i < step.slots.size(); ++i) {
    tokens += result.num_tokens[i];
    logprobs += size_t{result.num_tokens[i]} * result.logprob_width[i];
  }
  if (tokens != result.tokens.size()) {
    return Malformed(step, "it has " + std::to_string(result.tokens.size()) + " tokens, its " +
                               "sequences " + std::to_string(tokens));
  }
  if (logprobs != result.logprob_ids.size()) {
    return Malformed(step, "it has " + std::to_string(result.logprob_ids.size()) +
                               " log probabilities, its sequences " + std::to_string(logprobs));
  }
  return Status::Ok();
}

}  // namespace

template <typename T>
void StepEncoder::Append(const std::vector<T>& values) {
  if (const size_t padding = AlignFrameArray(size_) - size_; padding > 0) {
    parts_.push_back({kPadding, padding});
    size_ += padding;
  }
  if (values.empty()) return;
  parts_.push_back({const_cast<T*>(values.data()), values.size() * sizeof(T)});
  size_ += values.size() * sizeof(T);
}

const std::vector<iovec>& StepEncoder::Encode(const StepPlan& plan) {
  header_ = {plan.step_id,
             static_cast<uint32_t>(plan.slot.size()),
             static_cast<uint32_t>(plan.token_ids.size()),
             static_cast<uint32_t>(plan.new_block_ids.size()),
             static_cast<uint32_t>(plan.copies.size()),
             static_cast<uint32_t>(plan.admitted.size()),
             static_cast<uint32_t>(plan.retired.size()),
             static_cast<uint32_t>(plan.aux.size()),
             plan.num_groups};
  parts_.assign(1, {&header_, sizeof header_});
  size_ = sizeof header_;
  Append(plan.slot);
  Append(plan.num_tokens);
  Append(plan.first_position);
  Append(plan.num_new_blocks);
  Append(plan.flags);
  Append(plan.token_ids);
  Append(plan.new_block_ids);
  Append(plan.copies);
  Append(plan.admitted);
  Append(plan.retired);
  Append(plan.aux);
  return parts_;
}

Status DecodeResult(const uint8_t* payload, size_t size, const SentStep& step, StepResult* result) {
  ResultHeader header;
  if (size < sizeof header) {
    return Malformed(step, "its payload of " + std::to_string(size) + " bytes has no header");
  }
  std::memcpy(&header, payload, sizeof header);
  if (header.step_id != step.step_id) {
    return Malformed(step, "it names step " + std::to_string(header.step_id));
  }
  if (header.num_seqs != step.slots.size()) {
    return Malformed(step, "it has " + std::to_string(header.num_seqs) + " sequences, the plan " +
                               std::to_string(step.slots.size()));
  }
  result->step_id = header.step_id;
  result->start_ns = header.start_ns;
  result->end_ns = header.end_ns;
  ArrayReader reader(payload, size, sizeof header);
  const bool whole = reader.Read(header.num_seqs, &result->slot) &&
                     reader.Read(header.num_seqs, &result->status) &&
                     reader.Read(header.num_seqs, &result->num_tokens) &&
                     reader.Read(header.num_seqs, &result->logprob_width) &&
                     reader.Read(header.num_seqs, &result->context_rows) &&
                     reader.Read(header.num_seqs, &result->generation_rows) &&
                     reader.Read(header.num_tokens, &result->tokens) &&
                     reader.Read(header.num_logprobs, &result->logprob_ids) &&
                     reader.Read(header.num_logprobs, &result->logprob_values) &&
                     reader.Read(header.num_logits, &result->logits);
  if (!whole || !reader.AtEnd()) {
    return Malformed(step, "its payload of " + std::to_string(size) +
                               " bytes does not hold what its header counts");
  }
  return CheckCounts(step, *result);
}

}  // namespace slipstream
