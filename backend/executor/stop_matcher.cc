// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/stop_matcher.h"

#include <utility>

#include "executor/utf8.h"

namespace slipstream {

StopStrings::StopStrings(std::vector<std::string> strings, bool include_in_output)
    : strings_(std::move(strings)), include_in_output_(include_in_output), automaton_(strings_) {}

StatusOr<std::shared_ptr<const StopStrings>> StopStrings::Create(std::vector<std::string> strings,
                                                                 bool include_in_output) {
  for (size_t i = 0; i < strings.size(); ++i) {
    const std::string name = "stop string " + std::to_string(i);
    if (strings[i].empty()) return Status::InvalidArgument(name + " is empty");
    if (!IsValidUtf8(strings[i])) return Status::InvalidArgument(name + " is not valid UTF-8");
  }
  return std::shared_ptr<const StopStrings>(
      new StopStrings(std::move(strings), include_in_output));  // the constructor is private
}

StopMatcher::StopMatcher(std::shared_ptr<const StopStrings> stops) : stops_(std::move(stops)) {}

std::optional<StopMatch> StopMatcher::Feed(std::string_view text, std::string* out) {
  if (stopped_ || text.empty()) return std::nullopt;
  const AhoCorasick<uint8_t>& automaton = stops_->automaton_;
  const uint64_t held_from = fed_ - held_.size();
  for (size_t i = 0; i < text.size(); ++i) {
    state_ = automaton.Next(state_, static_cast<uint8_t>(text[i]));
    if (automaton.match(state_) < 0) continue;
    const uint64_t end = fed_ + i + 1;
    const uint64_t begin = end - automaton.match_length(state_);
    held_.append(text.substr(0, i + 1));
    out->append(held_, 0, (stops_->include_in_output_ ? end : begin) - held_from);
    held_.clear();
    fed_ = end;
    stopped_ = true;
    return StopMatch{automaton.match(state_), begin, end};
  }
  fed_ += text.size();
  const auto could_match = static_cast<size_t>(automaton.depth(state_));
  if (held_.empty() && could_match == 0 && IncompleteUtf8Tail(text) == 0) {
    out->append(text);
    return std::nullopt;
  }
  held_.append(text);
  size_t certain = held_.size() - could_match;
  certain -= IncompleteUtf8Tail(std::string_view(held_).substr(0, certain));
  out->append(held_, 0, certain);
  held_.erase(0, certain);
  return std::nullopt;
}

void StopMatcher::Flush(std::string* out) {
  out->append(held_);
  held_.clear();
  state_ = AhoCorasick<uint8_t>::kStart;
}

TokenStopSequences::TokenStopSequences(std::vector<std::vector<int32_t>> sequences)
    : sequences_(std::move(sequences)), automaton_(sequences_) {}

StatusOr<std::shared_ptr<const TokenStopSequences>> TokenStopSequences::Create(
    std::vector<std::vector<int32_t>> sequences) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].empty()) {
      return Status::InvalidArgument("stop sequence " + std::to_string(i) + " is empty");
    }
  }
  return std::shared_ptr<const TokenStopSequences>(
      new TokenStopSequences(std::move(sequences)));  // the constructor is private
}

TokenStopMatcher::TokenStopMatcher(std::shared_ptr<const TokenStopSequences> stops)
    : stops_(std::move(stops)) {}

std::optional<int32_t> TokenStopMatcher::Feed(int32_t token) {
  state_ = stops_->automaton_.Next(state_, token);
  const int32_t match = stops_->automaton_.match(state_);
  if (match < 0) return std::nullopt;
  return match;
}

}  // namespace slipstream
