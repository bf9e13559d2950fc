// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/ledger.h"

#include <algorithm>
#include <set>

#include "executor/admission.h"

namespace slipstream::simulation {
namespace {

bool IsNatural(FinishReason reason) {
  return reason == FinishReason::kStop || reason == FinishReason::kStopSequence ||
         reason == FinishReason::kLength;
}

}  // namespace

Ledger::Ledger(const Workload& workload, const Script* script, bool keep_outcomes)
    : script_(script),
      max_restarts_(workload.config.max_restarts),
      only_deadly_kill_(workload.faults.OnlyDeadlyKill()),
      keep_outcomes_(keep_outcomes) {}

void Ledger::OnAccepted(RequestId id, const Arrival& arrival) {
  Live live;
  const RequestSpec& spec = live.spec = arrival.spec;
  live.deadly = arrival.deadly_position >= 0;
  live.most_tokens = static_cast<size_t>(spec.max_new_tokens);
  if (arrival.non_finite_position >= 0) {
    live.most_tokens = static_cast<size_t>(arrival.non_finite_position) + 1 - spec.prompt.size();
  }
  for (int32_t i = 0; i < spec.num_return_sequences; ++i) {
    Owed owed;
    owed.answer = AnswerOf(*script_, spec, i);
    live.sequences.push_back(std::move(owed));
  }
  live_.emplace(id, std::move(live));
}

void Ledger::OnClientCancel(const std::string& client_id) {
  for (auto& [id, live] : live_) live.cancelled |= live.spec.client_id == client_id;
}

bool Ledger::IsLive(SequenceKey key) const {
  const auto it = live_.find(key.first);
  return it != live_.end() && !it->second.sequences[key.second].ended;
}

void Ledger::OnFailure(const std::vector<SequenceKey>& in_flight) {
  std::set<RequestId> struck;
  for (const SequenceKey& key : in_flight) {
    if (!struck.insert(key.first).second) continue;
    const auto it = live_.find(key.first);
    if (it != live_.end()) ++it->second.losses;
  }
}

void Ledger::OnSampled(SequenceKey key) {
  if (IsLive(key)) live_.at(key.first).losses = 0;
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
  if (owed.received > live.most_tokens) return "it went on after logits that are not finite";
  delivered_tokens_ += event.tokens.size();
  delivered_bytes_ += event.text.size();
  if (keep_outcomes_) Keep(event);
  if (event.reason != FinishReason::kNone) {
    wrong = End(event, live, owed, now);
    if (!wrong.empty()) return wrong;
    owed.ended = true;
    ++live.ended;
    ++finished_[static_cast<size_t>(event.reason)];
  }
  const bool done = live.ended == live.sequences.size();
  if (event.request_done != done) return done ? "request_done is missing" : "request_done too soon";
  if (!done) return "";
  live_.erase(it);
  return "";
}

void Ledger::Keep(const Event& event) {
  Outcome& outcome = outcomes_[{event.request, event.sequence_index}];
  outcome.tokens.insert(outcome.tokens.end(), event.tokens.begin(), event.tokens.end());
  outcome.text += event.text;
  outcome.logprobs.insert(outcome.logprobs.end(), event.logprobs.values.begin(),
                          event.logprobs.values.end());
  outcome.reason = event.reason;
  outcome.stop_reason = event.stop_reason;
}

std::string Ledger::Deliver(const Event& event, const RequestSpec& spec, Owed* owed) const {
  const size_t begin = owed->received;
  owed->received += event.tokens.size();
  std::string wrong = CheckTokens(event, *owed, begin);
  if (!spec.streaming && event.reason == FinishReason::kNone) wrong = "it is not to be streamed";
  if (wrong.empty()) wrong = CheckText(event, spec, owed);
  if (wrong.empty()) wrong = CheckLogprobs(event, spec, begin, owed);
  if (wrong.empty()) wrong = CheckLogits(event, spec, begin, owed);
  return wrong;
}

std::string Ledger::CheckTokens(const Event& event, const Owed& owed, size_t begin) const {
  const std::vector<int32_t>& answer = owed.answer.tokens;
  if (owed.received > answer.size() ||
      !std::equal(event.tokens.begin(), event.tokens.end(), answer.begin() + begin)) {
    return "it got other tokens than its own from token " + std::to_string(begin) + " on";
  }
  const bool natural = IsNatural(event.reason);
  const int64_t completion = natural ? owed.answer.completion_tokens : owed.received;
  if (event.usage.completion_tokens == completion) return "";
  return "it counts " + std::to_string(event.usage.completion_tokens) + " tokens, not " +
         std::to_string(completion);
}

// What is certain is shown at once, and nothing more.
std::string Ledger::CheckText(const Event& event, const RequestSpec& spec, Owed* owed) const {
  const Answer& answer = owed->answer;
  std::string expected = answer.text;
  if (event.reason == FinishReason::kNone) {
    expected.resize(owed->received == 0 ? 0 : answer.certain[owed->received - 1]);
  } else if (!IsNatural(event.reason)) {
    expected = TextIfEnded(*script_, spec, answer.tokens, owed->received);
  }
  const size_t shown = owed->shown;
  owed->shown += event.text.size();
  if (expected.size() >= shown && expected.compare(shown, std::string::npos, event.text) == 0 &&
      expected.compare(0, shown, answer.text, 0, shown) == 0) {
    return "";
  }
  return "its text after " + std::to_string(owed->received) + " tokens is not \"" + expected +
         "\": to " + std::to_string(shown) + " bytes came \"" + event.text + "\"";
}

std::string Ledger::CheckLogprobs(const Event& event, const RequestSpec& spec, size_t begin,
                                  Owed* owed) const {
  std::vector<int32_t> ids;
  std::vector<float> values;
  for (size_t i = begin; spec.num_logprobs >= 0 && i < owed->received; ++i) {
    const size_t own = values.size();
    script_->AppendLogprobs(owed->answer.tokens[i], static_cast<int32_t>(i), spec.num_logprobs,
                            &ids, &values);
    owed->cum_logprob += values[own];
  }
  const int32_t width = values.empty() ? 0 : 1 + spec.num_logprobs;
  if (event.logprobs.ids == ids && event.logprobs.values == values &&
      event.logprobs.width == width && event.cum_logprob == owed->cum_logprob) {
    return "";
  }
  return "its log probabilities from token " + std::to_string(begin) + " on are others";
}

std::string Ledger::CheckLogits(const Event& event, const RequestSpec& spec, size_t begin,
                                Owed* owed) const {
  const auto prompt_len = static_cast<int32_t>(spec.prompt.size());
  std::vector<float> logits;
  for (size_t i = begin; spec.return_generation_logits && i < owed->received; ++i) {
    script_->AppendLogits(prompt_len - 1 + static_cast<int32_t>(i), owed->answer.tokens[i],
                          &logits);
  }
  if (event.generation_logits != logits) return "its generation logits are others";
  const size_t rows = event.context_logits.size() / static_cast<size_t>(script_->vocab_size());
  logits.clear();
  for (size_t i = 0; i < rows; ++i) {
    script_->AppendLogits(static_cast<int32_t>(owed->context_rows + i), -1, &logits);
  }
  if (event.context_logits != logits) return "the logits of its prompt are others";
  owed->context_rows += rows;
  if (owed->received > 0 && spec.return_context_logits &&
      owed->context_rows != spec.prompt.size()) {
    return "it got " + std::to_string(owed->context_rows) + " rows of its prompt's logits, not " +
           std::to_string(prompt_len);
  }
  return "";
}

std::string Ledger::End(const Event& event, const Live& live, const Owed& owed, TimeNs now) const {
  const std::string name = FinishReasonName(event.reason);
  switch (event.reason) {
    case FinishReason::kCancelled:
      return live.cancelled || drained_ ? "" : "it was never cancelled";
    case FinishReason::kDeadline:
      return now >= live.spec.deadline ? "" : "its deadline is later";
    case FinishReason::kError:
      return EndByError(event, live, owed);
    default:
      break;
  }
  if (event.reason != owed.answer.reason || event.stop_reason != owed.answer.stop_reason) {
    return "it ended with " + name + " (" + event.stop_reason + "), not " +
           FinishReasonName(owed.answer.reason) + " (" + owed.answer.stop_reason + ")";
  }
  if (owed.received != owed.answer.tokens.size()) {
    return "it ended with " + name + " after " + std::to_string(owed.received) + " of " +
           std::to_string(owed.answer.tokens.size()) + " tokens";
  }
  return now < live.spec.deadline ? "" : "it outlived its deadline";
}

std::string Ledger::EndByError(const Event& event, const Live& live, const Owed& owed) const {
  if (event.error.message().find("non-finite") != std::string::npos) {
    return owed.received == live.most_tokens ? "" : "its logits were finite";
  }
  if (given_up_) return "";
  // Its place in a full queue went to a better class; nothing was spent on it by then.
  if (event.error.message() == kDisplaced) {
    const bool idle = owed.received == 0 && live.spec.priority > 0;
    return idle ? "" : "it was displaced, but had begun or is of the best class";
  }
  if (only_deadly_kill_ && !live.deadly) return "a deadly request took it along";
  return IsBlamed(live) ? "" : "it ended with the error: " + event.error.message();
}

std::string Ledger::CheckEnded() const {
  for (const auto& [id, live] : live_) {
    if (given_up_) return "request " + std::to_string(id) + " got no error";
    if (live.cancelled) return "request " + std::to_string(id) + " outlived its cancel";
    if (!IsBlamed(live)) continue;
    return "request " + std::to_string(id) + " outlived more than " +
           std::to_string(max_restarts_) + " deaths in a row";
  }
  return "";
}

}  // namespace slipstream::simulation
