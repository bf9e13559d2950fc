// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/answer.h"

#include <algorithm>
#include <optional>

namespace slipstream::simulation {
namespace {

struct Match {
  std::string stop;
  std::string text;  // the output up to and with it
};

// The stop string in text[from, …) that ends first; of those the one that begins first.
std::optional<Match> FindStop(const RequestSpec& spec, const std::string& text, size_t from) {
  for (size_t end = from + 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& stop : spec.stop_strings) {
      if (stop.size() > end - from || text.compare(end - stop.size(), stop.size(), stop) != 0) {
        continue;
      }
      if (best == nullptr || stop.size() > best->size()) best = &stop;
    }
    if (best != nullptr) {
      return Match{*best, text.substr(0, spec.include_stop ? end : end - best->size())};
    }
  }
  return std::nullopt;
}

// Bytes at the end of text[from, …) that may be the beginning of a stop string.
size_t HeldBytes(const RequestSpec& spec, const std::string& text, size_t from) {
  size_t held = 0;
  for (const std::string& stop : spec.stop_strings) {
    for (size_t size = std::min(stop.size() - 1, text.size() - from); size > held; --size) {
      if (text.compare(text.size() - size, size, stop, 0, size) == 0) held = size;
    }
  }
  return held;
}

// Writes one answer, token by token.
class Writer {
 public:
  Writer(const Script& script, const RequestSpec& spec, Answer* answer)
      : script_(script), spec_(spec), answer_(answer) {}

  // True when it ends with this token.
  bool Add(int32_t token) {
    Answer& a = *answer_;
    const int32_t generated = ++a.completion_tokens;
    if (std::find(spec_.end_ids.begin(), spec_.end_ids.end(), token) != spec_.end_ids.end()) {
      return End(FinishReason::kStop, std::to_string(token));
    }
    a.tokens.push_back(token);
    const std::string settled =
        script_.Settled(a.tokens, a.tokens.size(), spec_.skip_special_tokens);
    const bool armed = generated >= spec_.sampling.min_tokens;
    if (!armed) searched_from_ = settled.size();
    if (const auto match = armed ? FindStop(spec_, settled, searched_from_) : std::nullopt) {
      a.reason = FinishReason::kStopSequence;
      a.stop_reason = match->stop;
      a.text = match->text;
      return true;
    }
    if (const std::string stop = armed ? StopSequence() : ""; !stop.empty()) {
      return End(FinishReason::kStopSequence, stop);
    }
    if (generated == spec_.max_new_tokens) return End(FinishReason::kLength, "");
    a.certain.push_back(settled.size() - (armed ? HeldBytes(spec_, settled, searched_from_) : 0));
    return false;
  }

 private:
  // The longest that ends here.
  std::string StopSequence() const {
    const std::vector<int32_t>& tokens = answer_->tokens;
    const std::vector<int32_t>* best = nullptr;
    for (const auto& stop : spec_.stop_sequences) {
      if (stop.size() > tokens.size() || !std::equal(stop.rbegin(), stop.rend(), tokens.rbegin()) ||
          (best != nullptr && best->size() >= stop.size())) {
        continue;
      }
      best = &stop;
    }
    std::string name;
    for (size_t i = 0; best != nullptr && i < best->size(); ++i) {
      name += (i == 0 ? "" : " ") + std::to_string((*best)[i]);
    }
    return name;
  }

  // The rest of the text may still hold a stop string.
  bool End(FinishReason reason, const std::string& stop_reason) {
    Answer& a = *answer_;
    a.reason = reason;
    a.stop_reason = stop_reason;
    a.text = script_.Text(a.tokens, a.tokens.size(), spec_.skip_special_tokens);
    const bool armed = static_cast<int32_t>(a.tokens.size()) >= spec_.sampling.min_tokens;
    const auto match = armed ? FindStop(spec_, a.text, searched_from_) : std::nullopt;
    if (!match) return true;
    a.reason = FinishReason::kStopSequence;
    a.stop_reason = match->stop;
    a.text = match->text;
    return true;
  }

  const Script& script_;
  const RequestSpec& spec_;
  Answer* const answer_;
  size_t searched_from_ = 0;  // what comes before min_tokens is not searched
};

}  // namespace

Answer AnswerOf(const Script& script, const RequestSpec& spec, int32_t sequence) {
  Answer answer;
  Writer writer(script, spec, &answer);
  for (int32_t i = 0; !writer.Add(script.Token(spec, sequence, i));) ++i;
  if (!spec.return_text) answer.text.clear();
  answer.certain.resize(answer.tokens.size(), answer.text.size());
  if (!spec.return_text) std::fill(answer.certain.begin(), answer.certain.end(), 0);
  return answer;
}

std::string TextIfEnded(const Script& script, const RequestSpec& spec,
                        const std::vector<int32_t>& tokens, size_t count) {
  if (!spec.return_text) return "";
  const auto min_tokens = static_cast<size_t>(spec.sampling.min_tokens);
  const std::string text = script.Text(tokens, count, spec.skip_special_tokens);
  if (count < min_tokens) return text;
  const size_t unarmed = min_tokens > 0 ? min_tokens - 1 : 0;
  const size_t from = script.Settled(tokens, unarmed, spec.skip_special_tokens).size();
  const auto match = FindStop(spec, text, from);
  return match ? match->text : text;
}

}  // namespace slipstream::simulation
