// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "executor/event.h"
#include "executor/request.h"
#include "simulation/answer.h"
#include "simulation/script.h"
#include "simulation/traffic.h"
#include "simulation/workload.h"

namespace slipstream::simulation {

using SequenceKey = std::pair<RequestId, int32_t>;

// What requests are owed, and what they got. Every event is held to it:
// - for each sequence one terminal event, for each request one request_done, and nothing after it;
// - its tokens, text, log probabilities and logits are those of its Answer, in order and at once,
//   nothing repeated or lost; all of them unless something ended it early, and then the text of
//   what it has;
// - it is cancelled only if it was, or at the end of a drain; ends by its deadline only then and
//   never later; and by an error only with all others, when the Executor gives up, or where its
//   logits are not finite, or before it began, when its place in a full queue went to a better
//   class, or when its request was in flight at more than max_restarts deaths
//   without a token in between; never, in that last case, when only deadly requests kill workers
//   and it is none.
// Forgets what is done, so that its memory is that of the live requests.
class Ledger {
 public:
  Ledger(const Workload& workload, const Script* script, bool keep_outcomes);

  void OnAccepted(RequestId id, const Arrival& arrival);
  void OnCancel(RequestId id) { live_.at(id).cancelled = true; }
  void OnClientCancel(const std::string& client_id);
  void OnDeadly(RequestId id) { live_.at(id).deadly = true; }
  // The worker failed with steps in flight that name these sequences.
  void OnFailure(const std::vector<SequenceKey>& in_flight);
  void OnSampled(SequenceKey sequence);
  // From here on every request ends with the error / as cancelled.
  void OnGivenUp() { given_up_ = true; }
  void OnDrained() { drained_ = true; }
  // Empty, or what is wrong with them.
  std::string OnEvents(const std::vector<Event>& events, TimeNs now);
  // Empty, or who should have ended by now.
  std::string CheckEnded() const;

  bool IsLive(RequestId id) const { return live_.count(id) > 0; }
  bool IsLive(SequenceKey key) const;
  size_t num_live() const { return live_.size(); }
  uint64_t finished(FinishReason reason) const { return finished_[static_cast<size_t>(reason)]; }
  uint64_t delivered_tokens() const { return delivered_tokens_; }
  uint64_t delivered_bytes() const { return delivered_bytes_; }  // of text

  struct Outcome {
    std::vector<int32_t> tokens;
    std::string text;
    std::vector<float> logprobs;
    FinishReason reason = FinishReason::kNone;
    std::string stop_reason;
  };
  const std::map<SequenceKey, Outcome>& outcomes() const { return outcomes_; }

 private:
  struct Owed {
    Answer answer;
    size_t received = 0;  // tokens
    size_t shown = 0;     // bytes of text
    size_t context_rows = 0;
    float cum_logprob = 0;
    bool ended = false;
  };
  struct Live {
    RequestSpec spec;
    std::vector<Owed> sequences;
    size_t most_tokens = 0;  // then its logits are not finite
    size_t ended = 0;
    int32_t losses = 0;  // deaths in a row that it was in flight at, without a token
    bool cancelled = false;
    bool deadly = false;
  };

  std::string OnEvent(const Event& event, TimeNs now);
  std::string Deliver(const Event& event, const RequestSpec& spec, Owed* owed) const;
  std::string CheckTokens(const Event& event, const Owed& owed, size_t begin) const;
  std::string CheckText(const Event& event, const RequestSpec& spec, Owed* owed) const;
  std::string CheckLogprobs(const Event& event, const RequestSpec& spec, size_t begin,
                            Owed* owed) const;
  std::string CheckLogits(const Event& event, const RequestSpec& spec, size_t begin,
                          Owed* owed) const;
  std::string End(const Event& event, const Live& live, const Owed& owed, TimeNs now) const;
  std::string EndByError(const Event& event, const Live& live, const Owed& owed) const;
  void Keep(const Event& event);
  bool IsBlamed(const Live& live) const { return live.losses > max_restarts_; }

  const Script* const script_;
  const int32_t max_restarts_;
  const bool only_deadly_kill_;
  const bool keep_outcomes_;
  bool given_up_ = false;
  bool drained_ = false;
  std::map<RequestId, Live> live_;
  std::map<SequenceKey, Outcome> outcomes_;
  uint64_t finished_[7] = {};
  uint64_t delivered_tokens_ = 0;
  uint64_t delivered_bytes_ = 0;
};

}  // namespace slipstream::simulation
