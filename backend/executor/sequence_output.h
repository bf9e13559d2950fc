// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "executor/detokenizer.h"
#include "executor/event.h"
#include "executor/request.h"
#include "executor/step.h"
#include "executor/stop_matcher.h"

namespace slipstream {

// One token as the worker returned it; pointers into the StepResult.
struct SampledToken {
  int32_t id = 0;
  const int32_t* logprob_ids = nullptr;
  const float* logprob_values = nullptr;
  int32_t logprob_width = 0;
  const float* logits = nullptr;  // [vocab], or null
  int32_t vocab_size = 0;
};

// Turns one sequence's generated tokens into the event under construction, and says when it ends.
class SequenceOutput {
 public:
  // `table` may be null when the request asks for no text.
  SequenceOutput(const Request& request, const std::shared_ptr<const TokenTable>& table);

  // Adds a token; `generated` counts it. Returns why the sequence ends with it, or kNone.
  FinishReason Accept(const SampledToken& token, const RequestSpec& spec, int32_t generated,
                      int32_t max_generated);
  // Ends the text for a reason that Accept did not find (cancel, deadline, error): settled text and
  // what was held back are kept, for nothing more can follow.
  void Close(const RequestSpec& spec);

  Event& event() { return event_; }
  // Takes the event built so far and starts the next one.
  Event Take();

 private:
  FinishReason FeedText(const RequestSpec& spec);
  void AddPayload(const SampledToken& token);
  bool FlushText(const RequestSpec& spec);

  std::optional<Detokenizer> detokenizer_;
  std::optional<StopMatcher> strings_;
  std::optional<TokenStopMatcher> sequences_;
  std::string scratch_;  // text between the detokenizer and the stop matcher
  Event event_;
  float cum_logprob_ = 0.0f;
  bool return_text_ = false;
  bool armed_ = true;  // min_tokens reached: stop strings count from here on
};

}  // namespace slipstream
