// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/ledger.h"

#include <algorithm>
#include <set>

namespace slipstream::simulation {

void Ledger::OnAccepted(RequestId id, const RequestSpec& spec) {
  Live live;
  live.spec = spec;
  for (int32_t i = 0; i < spec.num_return_sequences; ++i) {
    live.sequences.push_back({AnswerOf(spec, i, vocab_size_)});
  }
  live_.emplace(id, std::move(live));
}

bool Ledger::IsLive(SequenceKey key) const {
  const auto it = live_.find(key.first);
  return it != live_.end() && !it->second.sequences[key.second].ended;
}

void Ledger::OnDeath(const std::vector<SequenceKey>& in_flight) {
  for (const SequenceKey& key : std::set<SequenceKey>(in_flight.begin(), in_flight.end())) {
    if (IsLive(key)) ++live_.at(key.first).sequences[key.second].losses;
  }
}

void Ledger::OnSampled(SequenceKey key) {
  if (IsLive(key)) live_.at(key.first).sequences[key.second].losses = 0;
}

std::string Ledger::OnEvents(const std::vector<Event>& events, TimeNs now) {
  for (const Event& event : events) {
    const std::string wrong = OnEvent(event, now);
    if (wrong.empty()) continue;
    return "request " + std::to_string(event.request) + ", sequence " +
           std::to_string(event.sequence_index) + ": " + wrong;
  }
  return "";
}

std::string Ledger::OnEvent(const Event& event, TimeNs now) {
  const auto it = live_.find(event.request);
  if (it == live_.end()) return "an event of a request that is not live";
  Live& live = it->second;
  if (event.sequence_index < 0 ||
      event.sequence_index >= static_cast<int32_t>(live.sequences.size())) {
    return "there is no such sequence";
  }
  Owed& owed = live.sequences[event.sequence_index];
  if (owed.ended) return "an event after its terminal one";
  std::string wrong = Deliver(event, live.spec, &owed);
  if (!wrong.empty()) return wrong;
  delivered_tokens_ += event.tokens.size();
  if (keep_outcomes_) {
    Outcome& outcome = outcomes_[{event.request, event.sequence_index}];
    outcome.tokens.insert(outcome.tokens.end(), event.tokens.begin(), event.tokens.end());
    outcome.reason = event.reason;
  }
  if (event.reason != FinishReason::kNone) {
    wrong = End(event, live, owed, now);
    if (!wrong.empty()) return wrong;
    owed.ended = true;
    ++live.ended;
    ++finished_[static_cast<size_t>(event.reason)];
  }
  const bool done = live.ended == live.sequences.size();
  if (event.request_done != done) return done ? "request_done is missing" : "request_done too soon";
  if (done) live_.erase(it);
  return "";
}

std::string Ledger::Deliver(const Event& event, const RequestSpec& spec, Owed* owed) const {
  const std::vector<int32_t>& answer = owed->answer.tokens;
  const size_t begin = owed->received;
  owed->received += event.tokens.size();
  if (owed->received > answer.size() ||
      !std::equal(event.tokens.begin(), event.tokens.end(), answer.begin() + begin)) {
    return "it got other tokens than its own from token " + std::to_string(begin) + " on";
  }
  if (!spec.streaming && event.reason == FinishReason::kNone) return "it is not to be streamed";
  owed->context_rows += event.context_logits.size() / static_cast<size_t>(vocab_size_);
  if (owed->received > 0 && spec.return_context_logits &&
      owed->context_rows != spec.prompt.size()) {
    return "it got " + std::to_string(owed->context_rows) + " rows of its prompt's logits, not " +
           std::to_string(spec.prompt.size());
  }
  return "";
}

std::string Ledger::End(const Event& event, const Live& live, const Owed& owed, TimeNs now) const {
  const std::string name = FinishReasonName(event.reason);
  switch (event.reason) {
    case FinishReason::kCancelled:
      return live.cancelled ? "" : "it was never cancelled";
    case FinishReason::kDeadline:
      return now >= live.spec.deadline ? "" : "its deadline is later";
    case FinishReason::kError:
      if (owed.losses > max_restarts_) return "";
      // Its place in a full queue went to a better class; nothing was spent on it by then.
      if (event.error.code() == StatusCode::kUnavailable && live.spec.priority > 0 &&
          owed.received == 0) {
        return "";
      }
      return "it ended with the error: " + event.error.message();
    default:
      break;
  }
  if (event.reason != owed.answer.reason) {
    return "it ended with " + name + ", not " + FinishReasonName(owed.answer.reason);
  }
  if (owed.received != owed.answer.tokens.size() ||
      event.usage.completion_tokens != owed.answer.completion_tokens) {
    return "it ended with " + name + " after " + std::to_string(owed.received) + " of " +
           std::to_string(owed.answer.tokens.size()) + " tokens";
  }
  return now < live.spec.deadline ? "" : "it outlived its deadline";
}

std::string Ledger::CheckEnded() const {
  for (const auto& [id, live] : live_) {
    for (const Owed& owed : live.sequences) {
      if (owed.ended || owed.losses <= max_restarts_) continue;
      return "request " + std::to_string(id) + " outlived " + std::to_string(owed.losses) +
             " deaths in a row";
    }
  }
  return "";
}

}  // namespace slipstream::simulation
