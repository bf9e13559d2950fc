// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/answer.h"

#include <algorithm>

#include "executor/block_hash.h"
#include "worker_link/scripted_model.h"

namespace slipstream::simulation {
namespace {

bool EndsWith(const std::vector<int32_t>& tokens, const std::vector<int32_t>& tail) {
  return tail.size() <= tokens.size() && std::equal(tail.rbegin(), tail.rend(), tokens.rbegin());
}

}  // namespace

Answer AnswerOf(const RequestSpec& spec, int32_t index, int32_t vocab_size) {
  Answer answer;
  const uint64_t seed = Mix64(spec.sampling.seed, static_cast<uint64_t>(index));
  const auto& ends = spec.end_ids;
  for (int32_t i = 0; i < spec.max_new_tokens; ++i) {
    const int32_t token = SeededToken(seed, i, vocab_size);
    ++answer.completion_tokens;
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) {
      answer.reason = FinishReason::kStop;
      return answer;
    }
    answer.tokens.push_back(token);
    if (answer.completion_tokens < spec.sampling.min_tokens) continue;
    for (const auto& stop : spec.stop_sequences) {
      if (!EndsWith(answer.tokens, stop)) continue;
      answer.reason = FinishReason::kStopSequence;
      return answer;
    }
  }
  return answer;
}

}  // namespace slipstream::simulation
