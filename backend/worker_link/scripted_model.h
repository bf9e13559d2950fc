// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "executor/status.h"
#include "executor/step.h"
#include "worker_link/plan_checker.h"
#include "worker_link/scripted_config.h"

namespace slipstream {

// What EmitRule::kSeeded draws: like sampling, a pure function of (seed, position). `seed` is the
// sequence's own, as AdmitRecord has it.
int32_t SeededToken(uint64_t seed, int32_t index, int32_t vocab_size);

struct ScriptedCounters {
  int32_t live_slots = 0;
  int64_t steps = 0;
  int64_t tokens = 0;    // sampled
  int32_t max_seqs = 0;  // sequences in the largest step
};

// A model without weights: emits tokens by rule and holds every plan to its contract
// (plan_checker.h). No thread and no clock but the time stamps, so it serves simulations too.
//
// What a sequence emits depends on its prompt, seed and positions alone: one that is admitted again
// with its generated tokens continues exactly. Other sampling parameters are ignored, except that
// end_after and kSeeded respect min_tokens: until then kSeeded goes on from an end id to the next
// token that is none. Log probabilities and logits, where asked for, are synthetic and
// exact in float32; i is the generated index of the sampled token t:
//   log probability of t: -(1 + i % 8) / 8; the j-th most likely (j from 0, k of them) is token
//   (t + j) % vocab_size with that value - j / 8;
//   logit of token v after position p: ((31 p + 7 v) % 1024) / 64, and 16 for t itself where it
//   was sampled from the row (generation logits).
class ScriptedModel {
 public:
  explicit ScriptedModel(ScriptedWorkerConfig config);

  WorkerInfo Info() const;

  // Applies a plan. An error means that the plan broke the contract, in words; the model must be
  // reset before it is used again.
  StatusOr<StepResult> Run(const StepPlan& plan);

  // As after a start: KV is empty, no slot is live. Counters go on, except live_slots.
  void Reset();

  const ScriptedWorkerConfig& config() const { return config_; }
  ScriptedCounters counters() const;
  // What the last Run's experts computed: [expert_layers, num_experts].
  const std::vector<uint64_t>& expert_tokens() const { return expert_tokens_; }

 private:
  int32_t Emit(const CheckedSlot& slot, int32_t index) const;
  int32_t DrawSeeded(const CheckedSlot& slot, int32_t index) const;
  void AddLogprobs(const CheckedSlot& slot, int32_t token, int32_t index, StepResult* result) const;
  void AddLogits(uint32_t position, int32_t sampled, StepResult* result) const;
  void Sample(const StepPlan& plan, size_t i, StepResult* result);
  void CountExperts(const StepPlan& plan);

  const ScriptedWorkerConfig config_;
  PlanChecker checker_;
  ScriptedCounters counters_;
  std::vector<uint64_t> expert_tokens_;
};

}  // namespace slipstream
