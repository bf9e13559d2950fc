// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/traffic.h"

#include <algorithm>

#include "simulation/answer.h"

namespace slipstream::simulation {
namespace {

constexpr size_t kConversations = 8;

}  // namespace

Traffic::Traffic(const Workload& workload, const RequestLimits& limits, const Script* script)
    : shape_(workload.traffic),
      faults_(workload.faults),
      limits_(limits),
      script_(script),
      seed_(workload.seed),
      dice_(Mix64(workload.seed, 2)) {
  for (int32_t i = 0; i < shape_.prefixes; ++i) {
    prefixes_.push_back(DrawTokens(dice_.Int(1, shape_.max_prompt), limits_.vocab_size));
  }
}

Arrival Traffic::Next() {
  Arrival arrival;
  if (!dice_.Chance(shape_.burst)) at_ += dice_.Exponential(shape_.mean_gap);
  arrival.at = at_;
  RequestSpec& spec = arrival.spec;
  spec.sampling.has_seed = true;
  spec.sampling.seed = Mix64(Mix64(seed_, 3), ++drawn_);
  spec.prompt = DrawPrompt();
  spec.max_new_tokens = dice_.Int(1, shape_.max_new);
  if (!dice_.Chance(shape_.oversized)) FitLength(&spec);
  spec.cache_salt = static_cast<uint64_t>(dice_.Int(1, shape_.salts));
  spec.num_return_sequences = dice_.Int(1, shape_.siblings);
  if (dice_.Chance(shape_.stops)) DrawStops(&spec);
  if (dice_.Chance(shape_.retention)) DrawRetention(&spec);
  if (dice_.Chance(shape_.priorities)) spec.priority = dice_.Int(0, 9);
  if (dice_.Chance(shape_.deadlines)) spec.deadline = at_ + dice_.Between(0, shape_.max_deadline);
  if (dice_.Chance(shape_.cancels)) arrival.cancel_after = dice_.Int(0, shape_.max_cancel_after);
  spec.streaming = !dice_.Chance(shape_.whole);
  DrawPayload(&spec);
  if (dice_.Chance(shape_.text)) DrawText(&spec);
  if (dice_.Chance(shape_.client_ids)) {
    spec.client_id = "client " + std::to_string(dice_.Int(1, 3));
    arrival.stop_client = dice_.Chance(0.3);
  }
  DrawFaults(&arrival);
  if (conversations_.size() == kConversations) conversations_.pop_front();
  conversations_.push_back(spec.prompt);
  const Answer answer = AnswerOf(*script_, spec, 0);
  conversations_.back().insert(conversations_.back().end(), answer.tokens.begin(),
                               answer.tokens.end());
  return arrival;
}

void Traffic::DrawFaults(Arrival* arrival) {
  const auto prompt_len = static_cast<int32_t>(arrival->spec.prompt.size());
  const int32_t last = prompt_len + arrival->spec.max_new_tokens - 2;
  if (deadly_ < faults_.max_deadly && dice_.Chance(faults_.deadly)) {
    ++deadly_;
    arrival->deadly_position = dice_.Int(0, last);
  }
  // Positions before the prompt's last may be cached, and are never computed then.
  if (dice_.Chance(faults_.non_finite)) {
    arrival->non_finite_position = dice_.Int(prompt_len - 1, last);
  }
}

std::vector<int32_t> Traffic::DrawPrompt() {
  std::vector<int32_t> prompt;
  if (!conversations_.empty() && dice_.Chance(shape_.follow_up)) {
    prompt = conversations_[dice_.Next() % conversations_.size()];
  } else if (!prefixes_.empty() && dice_.Chance(0.7)) {
    prompt = prefixes_[dice_.Next() % prefixes_.size()];
  }
  const auto most = static_cast<size_t>(dice_.Int(1, shape_.max_prompt));
  if (prompt.size() > most) prompt.resize(most);
  const auto more = static_cast<int32_t>(most - prompt.size());
  const auto tail = DrawTokens(dice_.Int(prompt.empty() ? 1 : 0, more), limits_.vocab_size);
  prompt.insert(prompt.end(), tail.begin(), tail.end());
  return prompt;
}

std::vector<int32_t> Traffic::DrawTokens(int32_t count, int32_t vocab_size) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(dice_.Int(0, vocab_size - 1));
  return tokens;
}

void Traffic::FitLength(RequestSpec* spec) {
  // The last token needs no KV.
  int64_t total = std::min<int64_t>(limits_.max_seq_len - 1, limits_.kv_capacity_tokens) + 1;
  if (limits_.max_prompt_tokens > 0) {
    const auto most = static_cast<size_t>(limits_.max_prompt_tokens);
    spec->prompt.resize(std::min(spec->prompt.size(), most));
  }
  spec->prompt.resize(std::min(spec->prompt.size(), static_cast<size_t>(total - 1)));
  total -= static_cast<int64_t>(spec->prompt.size());
  spec->max_new_tokens = static_cast<int32_t>(std::min<int64_t>(spec->max_new_tokens, total));
}

void Traffic::DrawStops(RequestSpec* spec) {
  if (dice_.Chance(0.5)) spec->end_ids = DrawTokens(dice_.Int(1, 2), limits_.vocab_size);
  for (int32_t i = dice_.Int(0, 2); i > 0; --i) {
    spec->stop_sequences.push_back(DrawTokens(dice_.Int(1, 2), limits_.vocab_size));
  }
  if (dice_.Chance(0.5)) spec->sampling.min_tokens = dice_.Int(1, 4);
}

void Traffic::DrawPayload(RequestSpec* spec) {
  spec->return_context_logits = dice_.Chance(shape_.context_logits);
  spec->return_generation_logits = dice_.Chance(shape_.generation_logits);
  if (dice_.Chance(shape_.logprobs)) spec->num_logprobs = dice_.Int(0, 4);
}

// Stop strings are parts of what the first sequence says, so that they are found; some are a byte
// off, so that they are nearly found.
void Traffic::DrawText(RequestSpec* spec) {
  spec->return_text = dice_.Chance(0.9);
  spec->skip_special_tokens = dice_.Chance(0.5);
  spec->include_stop = dice_.Chance(0.3);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < spec->max_new_tokens; ++i) tokens.push_back(script_->Token(*spec, 0, i));
  const std::string text = script_->Text(tokens, tokens.size(), spec->skip_special_tokens);
  std::vector<size_t> starts;  // of characters, and the end
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) starts.push_back(i);
  }
  const auto characters = static_cast<int32_t>(starts.size()) - 1;
  for (int32_t i = characters > 0 ? dice_.Int(0, 3) : 0; i > 0; --i) {
    const int32_t first = dice_.Int(0, characters - 1);
    const int32_t last = std::min(characters, first + dice_.Int(1, 6));
    std::string stop = text.substr(starts[first], starts[last] - starts[first]);
    if (dice_.Chance(0.3)) stop += 'z';
    spec->stop_strings.push_back(std::move(stop));
  }
}

void Traffic::DrawRetention(RequestSpec* spec) {
  const auto duration = [&] { return dice_.Chance(0.5) ? -1 : dice_.Int(0, shape_.retention_ms); };
  const auto length = static_cast<int32_t>(spec->prompt.size());
  const int32_t middle = dice_.Int(1, length);
  spec->retention.prompt = {{0, middle, dice_.Int(0, 100), duration()},
                            {middle, -1, dice_.Int(0, 100), duration()}};
  spec->retention.decode_priority = dice_.Int(0, 100);
  spec->retention.decode_duration_ms = duration();
}

}  // namespace slipstream::simulation
