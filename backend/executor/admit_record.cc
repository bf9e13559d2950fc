// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/admit_record.h"

#include <cstring>
#include <vector>

namespace slipstream {
namespace {

uint32_t AppendAux(const std::vector<int32_t>& values, StepPlan* plan) {
  const auto offset = static_cast<uint32_t>(plan->aux.size());
  plan->aux.insert(plan->aux.end(), values.begin(), values.end());
  return offset;
}

uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace

void AddAdmitRecord(const Sequence& s, bool send_history, StepPlan* plan) {
  const RequestSpec& spec = s.spec();
  const SamplingParams& p = spec.sampling;
  AdmitRecord r{};
  r.seed = Mix64(p.seed, static_cast<uint64_t>(s.index));
  r.slot = static_cast<uint32_t>(s.slot);
  r.temperature = p.temperature;
  r.top_k = p.top_k;
  r.top_p = p.top_p;
  r.min_p = p.min_p;
  r.top_p_decay = p.top_p_decay;
  r.top_p_min = p.top_p_min;
  r.top_p_reset_id = p.top_p_reset_id;
  r.repetition_penalty = p.repetition_penalty;
  r.presence_penalty = p.presence_penalty;
  r.frequency_penalty = p.frequency_penalty;
  r.prompt_ignore_length = p.prompt_ignore_length;
  r.min_tokens = p.min_tokens;
  r.num_logprobs = spec.num_logprobs;
  r.prompt_len = s.prompt_len;
  r.flags = spec.return_generation_logits ? kAdmitGenerationLogits : 0u;
  if (s.request->request.needs_history() || send_history) {
    r.flags |= kAdmitHistory;
    r.history_offset = AppendAux(s.tokens, plan);
    r.history_len = static_cast<uint32_t>(s.num_tokens());
  }
  r.end_ids_offset = AppendAux(spec.end_ids, plan);
  r.end_ids_len = static_cast<uint32_t>(spec.end_ids.size());
  r.bad_words_offset = static_cast<uint32_t>(plan->aux.size());
  if (!spec.bad_words.empty()) {
    plan->aux.push_back(static_cast<int32_t>(spec.bad_words.size()));
    for (const auto& word : spec.bad_words) {
      plan->aux.push_back(static_cast<int32_t>(word.size()));
      AppendAux(word, plan);
    }
  }
  r.bad_words_len = static_cast<uint32_t>(plan->aux.size()) - r.bad_words_offset;
  r.bias_offset = static_cast<uint32_t>(plan->aux.size());
  for (const auto& [id, bias] : spec.logit_bias) {
    plan->aux.push_back(id);
    plan->aux.push_back(static_cast<int32_t>(FloatBits(bias)));
  }
  r.bias_len = static_cast<uint32_t>(plan->aux.size()) - r.bias_offset;
  plan->admitted.push_back(r);
}

}  // namespace slipstream
