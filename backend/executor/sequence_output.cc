// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/sequence_output.h"

#include <algorithm>
#include <utility>

namespace slipstream {

SequenceOutput::SequenceOutput(const Request& request,
                               const std::shared_ptr<const TokenTable>& table)
    : return_text_(request.spec().return_text) {
  if (return_text_ || request.stop_strings()) {
    detokenizer_.emplace(table, request.spec().skip_special_tokens);
  }
  if (request.stop_strings()) strings_.emplace(request.stop_strings());
  if (request.stop_sequences()) sequences_.emplace(request.stop_sequences());
}

FinishReason SequenceOutput::Accept(const SampledToken& token, const RequestSpec& spec,
                                    int32_t generated, int32_t max_generated) {
  const auto& ends = spec.end_ids;
  if (std::find(ends.begin(), ends.end(), token.id) != ends.end()) {
    event_.stop_reason = std::to_string(token.id);
    return FlushText(spec) ? FinishReason::kStopSequence : FinishReason::kStop;
  }
  AddPayload(token);
  armed_ = generated >= spec.sampling.min_tokens;
  FinishReason reason = FinishReason::kNone;
  if (detokenizer_) {
    detokenizer_->Append(token.id, &scratch_);
    reason = FeedText(spec);
  }
  if (sequences_) {
    const auto match = sequences_->Feed(token.id);
    if (reason == FinishReason::kNone && match && armed_) {
      for (const int32_t id : spec.stop_sequences[*match]) {
        event_.stop_reason += (event_.stop_reason.empty() ? "" : " ") + std::to_string(id);
      }
      FlushText(spec);
      return FinishReason::kStopSequence;
    }
  }
  if (reason == FinishReason::kNone && generated >= max_generated) {
    reason = FlushText(spec) ? FinishReason::kStopSequence : FinishReason::kLength;
  }
  return reason;
}

void SequenceOutput::AddPayload(const SampledToken& token) {
  event_.tokens.push_back(token.id);
  if (token.logprob_width > 0) {
    event_.logprobs.width = token.logprob_width;
    event_.logprobs.ids.insert(event_.logprobs.ids.end(), token.logprob_ids,
                               token.logprob_ids + token.logprob_width);
    event_.logprobs.values.insert(event_.logprobs.values.end(), token.logprob_values,
                                  token.logprob_values + token.logprob_width);
    cum_logprob_ += token.logprob_values[0];
  }
  if (token.logits != nullptr) {
    event_.generation_logits.insert(event_.generation_logits.end(), token.logits,
                                    token.logits + token.vocab_size);
  }
}

// Moves the detokenizer's text on, through the stop matcher if there is one.
FinishReason SequenceOutput::FeedText(const RequestSpec& spec) {
  FinishReason reason = FinishReason::kNone;
  if (!strings_ || !armed_) {
    if (return_text_) event_.text += scratch_;
  } else {
    std::string* out = return_text_ ? &event_.text : &scratch_;
    const std::string text = std::exchange(scratch_, {});
    if (const auto match = strings_->Feed(text, out)) {
      event_.stop_reason = spec.stop_strings[match->index];
      reason = FinishReason::kStopSequence;
    }
  }
  scratch_.clear();
  return reason;
}

// The last text of the sequence; true when that completed a stop string.
bool SequenceOutput::FlushText(const RequestSpec& spec) {
  if (!detokenizer_ || (strings_ && strings_->stopped())) return false;
  detokenizer_->Flush(&scratch_);
  if (FeedText(spec) == FinishReason::kStopSequence) return true;
  if (strings_) strings_->Flush(return_text_ ? &event_.text : &scratch_);
  scratch_.clear();
  return false;
}

void SequenceOutput::Close(const RequestSpec& spec) {
  const std::string reason = event_.stop_reason;
  FlushText(spec);
  event_.stop_reason = reason;  // the sequence ended for another reason
}

Event SequenceOutput::Take() {
  event_.cum_logprob = cum_logprob_;
  Event taken = std::move(event_);
  event_ = Event{};
  return taken;
}

}  // namespace slipstream
