// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/scripted_model.h"

#include <algorithm>
#include <utility>

#include "executor/block_hash.h"
#include "worker_link/channel.h"

namespace slipstream {

int32_t SeededToken(uint64_t seed, int32_t index, int32_t vocab_size) {
  return static_cast<int32_t>(Mix64(seed, static_cast<uint64_t>(index)) %
                              static_cast<uint64_t>(vocab_size));
}

ScriptedModel::ScriptedModel(ScriptedWorkerConfig config)
    : config_(std::move(config)),
      checker_({config_.vocab_size, config_.max_seq_len, config_.tokens_per_block, config_.Groups(),
                config_.max_num_seqs, config_.max_num_tokens}) {}

WorkerInfo ScriptedModel::Info() const {
  WorkerInfo info;
  info.vocab_size = config_.vocab_size;
  info.max_seq_len = config_.max_seq_len;
  info.tokens_per_block = config_.tokens_per_block;
  if (config_.max_num_seqs > 0) info.max_num_seqs = config_.max_num_seqs;
  if (config_.max_num_tokens > 0) info.max_num_tokens = config_.max_num_tokens;
  info.kv_groups = config_.Groups();
  info.end_ids = config_.end_ids;
  info.pad_id = config_.pad_id;
  info.wants_history = true;
  info.token_table = config_.token_table;
  info.model_name = config_.model_name;
  info.device = "scripted";
  info.expert_layers = config_.expert_layers;
  info.num_experts = config_.num_experts;
  return info;
}

void ScriptedModel::Reset() { checker_.Reset(); }

ScriptedCounters ScriptedModel::counters() const {
  ScriptedCounters counters = counters_;
  counters.live_slots = checker_.live_slots();
  return counters;
}

StatusOr<StepResult> ScriptedModel::Run(const StepPlan& plan) {
  StepResult result;
  result.step_id = plan.step_id;
  result.start_ns = static_cast<uint64_t>(MonotonicNs());
  const Status applied = checker_.Apply(plan);
  if (!applied.ok()) return applied;
  const size_t n = plan.num_seqs();
  result.slot = plan.slot;
  result.status.assign(n, kSeqOk);
  result.num_tokens.assign(n, 0);
  result.logprob_width.assign(n, 0);
  result.context_rows.assign(n, 0);
  result.generation_rows.assign(n, 0);
  result.tokens.reserve(n);
  for (size_t i = 0; i < n; ++i) Sample(plan, i, &result);
  CountExperts(plan);
  ++counters_.steps;
  counters_.tokens += static_cast<int64_t>(result.tokens.size());
  counters_.max_seqs = std::max(counters_.max_seqs, static_cast<int32_t>(n));
  result.end_ns = static_cast<uint64_t>(MonotonicNs());
  return result;
}

void ScriptedModel::CountExperts(const StepPlan& plan) {
  if (config_.expert_layers.empty()) return;
  const auto experts = static_cast<size_t>(config_.num_experts);
  expert_tokens_.assign(config_.expert_layers.size() * experts, 0);
  for (size_t i = 0; i < plan.num_seqs(); ++i) {
    for (uint32_t p = plan.first_position[i]; p < plan.first_position[i] + plan.num_tokens[i];
         ++p) {
      for (size_t row = 0; row < config_.expert_layers.size(); ++row) {
        ++expert_tokens_[row * experts + p % experts];
      }
    }
  }
}

void ScriptedModel::Sample(const StepPlan& plan, size_t i, StepResult* result) {
  const CheckedSlot& slot = checker_.slot(plan.slot[i]);
  const uint32_t end = plan.first_position[i] + plan.num_tokens[i];
  if ((plan.flags[i] & kSeqContextLogits) != 0) {
    result->context_rows[i] = plan.num_tokens[i];
    for (uint32_t p = plan.first_position[i]; p < end; ++p) AddLogits(p, -1, result);
  }
  if ((plan.flags[i] & kSeqSample) == 0) return;
  const int32_t index = static_cast<int32_t>(end) - slot.record.prompt_len;
  const int32_t token = Emit(slot, index);
  result->num_tokens[i] = 1;
  result->tokens.push_back(token);
  if (slot.record.num_logprobs >= 0) {
    result->logprob_width[i] = 1 + static_cast<uint32_t>(slot.record.num_logprobs);
    AddLogprobs(slot, token, index, result);
  }
  if ((slot.record.flags & kAdmitGenerationLogits) != 0) {
    result->generation_rows[i] = 1;
    AddLogits(end - 1, token, result);
  }
  checker_.AddSampled(plan.slot[i], token);
}

int32_t ScriptedModel::Emit(const CheckedSlot& slot, int32_t index) const {
  if (config_.end_after > 0 && index == std::max(config_.end_after - 1, slot.record.min_tokens)) {
    return config_.end_ids[0];
  }
  switch (config_.emit) {
    case EmitRule::kCount:
      return static_cast<int32_t>((int64_t{config_.count_start} + index) % config_.vocab_size);
    case EmitRule::kConstant:
      return config_.constant_token;
    case EmitRule::kSeeded:
      return DrawSeeded(slot, index);
    case EmitRule::kEcho:
      break;
  }
  return slot.tokens[index % slot.record.prompt_len];
}

int32_t ScriptedModel::DrawSeeded(const CheckedSlot& slot, int32_t index) const {
  int32_t token = SeededToken(slot.record.seed, index, config_.vocab_size);
  if (index >= slot.record.min_tokens) return token;
  const std::vector<int32_t>& ends = slot.end_ids;
  for (size_t i = 0; i < ends.size(); ++i) {
    if (std::find(ends.begin(), ends.end(), token) == ends.end()) break;
    token = (token + 1) % config_.vocab_size;
  }
  return token;
}

void ScriptedModel::AddLogprobs(const CheckedSlot& slot, int32_t token, int32_t index,
                                StepResult* result) const {
  const float best = -static_cast<float>(1 + index % 8) / 8;
  result->logprob_ids.push_back(token);
  result->logprob_values.push_back(best);
  for (int32_t j = 0; j < slot.record.num_logprobs; ++j) {
    result->logprob_ids.push_back(static_cast<int32_t>((int64_t{token} + j) % config_.vocab_size));
    result->logprob_values.push_back(best - static_cast<float>(j) / 8);
  }
}

void ScriptedModel::AddLogits(uint32_t position, int32_t sampled, StepResult* result) const {
  const size_t row = result->logits.size();
  result->logits.resize(row + config_.vocab_size);
  for (int32_t v = 0; v < config_.vocab_size; ++v) {
    const uint64_t mixed = 31 * uint64_t{position} + 7 * static_cast<uint64_t>(v);
    result->logits[row + v] = static_cast<float>(mixed % 1024) / 64;
  }
  if (sampled >= 0) result->logits[row + sampled] = 16;
}

}  // namespace slipstream
