// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "executor/event.h"
#include "executor/request.h"
#include "simulation/answer.h"

namespace slipstream::simulation {

using SequenceKey = std::pair<RequestId, int32_t>;

// What requests are owed, and what they got. Every event is held to it:
// - for each sequence one terminal event, for each request one request_done, and nothing after it;
// - its tokens are those of AnswerOf, in order, nothing repeated or lost; all of them unless
//   something ended it early;
// - it is cancelled only if it was, ends by its deadline only then and never later, and by an error
//   only when it was in flight at more than max_restarts deaths without a token in between, or
//   before it began, when its place in a full queue went to a better class.
// Forgets what is done, so that its memory is that of the live requests.
class Ledger {
 public:
  Ledger(int32_t vocab_size, int32_t max_restarts, bool keep_outcomes)
      : vocab_size_(vocab_size), max_restarts_(max_restarts), keep_outcomes_(keep_outcomes) {}

  void OnAccepted(RequestId id, const RequestSpec& spec);
  void OnCancel(RequestId id) { live_.at(id).cancelled = true; }
  // The worker died with steps in flight that name these sequences.
  void OnDeath(const std::vector<SequenceKey>& in_flight);
  void OnSampled(SequenceKey sequence);
  // Empty, or what is wrong with them.
  std::string OnEvents(const std::vector<Event>& events, TimeNs now);
  // Empty, or who should have ended by now.
  std::string CheckEnded() const;

  bool IsLive(RequestId id) const { return live_.count(id) > 0; }
  bool IsLive(SequenceKey key) const;
  size_t num_live() const { return live_.size(); }
  uint64_t finished(FinishReason reason) const { return finished_[static_cast<size_t>(reason)]; }
  uint64_t delivered_tokens() const { return delivered_tokens_; }

  struct Outcome {
    std::vector<int32_t> tokens;
    FinishReason reason = FinishReason::kNone;
  };
  const std::map<SequenceKey, Outcome>& outcomes() const { return outcomes_; }

 private:
  struct Owed {
    Answer answer;
    size_t received = 0;
    size_t context_rows = 0;
    int32_t losses = 0;
    bool ended = false;
  };
  struct Live {
    RequestSpec spec;
    std::vector<Owed> sequences;
    size_t ended = 0;
    bool cancelled = false;
  };

  std::string OnEvent(const Event& event, TimeNs now);
  std::string Deliver(const Event& event, const RequestSpec& spec, Owed* owed) const;
  std::string End(const Event& event, const Live& live, const Owed& owed, TimeNs now) const;

  const int32_t vocab_size_;
  const int32_t max_restarts_;
  const bool keep_outcomes_;
  std::map<RequestId, Live> live_;
  std::map<SequenceKey, Outcome> outcomes_;
  uint64_t finished_[7] = {};
  uint64_t delivered_tokens_ = 0;
};

}  // namespace slipstream::simulation
