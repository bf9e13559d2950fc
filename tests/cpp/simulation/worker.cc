// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/worker.h"

#include <algorithm>
#include <utility>

namespace slipstream::simulation {
namespace {

ScriptedWorkerConfig WithTable(ScriptedWorkerConfig config, const std::string& token_table) {
  config.token_table = token_table;
  return config;
}

}  // namespace

Worker::Worker(const Workload& workload, const std::string& token_table)
    : faults_(workload.faults),
      max_step_(workload.max_step),
      can_hang_(workload.config.watchdog_ms > 0),
      model_(WithTable(workload.worker, token_table)),
      dice_(Mix64(workload.seed, 5)) {}

Status Worker::Send(const StepPlan& plan, std::vector<SequenceKey> named, TimeNs now) {
  Step step;
  auto result = model_.Run(plan);
  if (!result.ok()) return result.status();
  step.result = std::move(*result);
  bool deadly = false;
  for (size_t i = 0; i < named.size(); ++i) {
    deadly |= Computes(deadly_, plan, named[i], i);
    if (Computes(non_finite_, plan, named[i], i)) step.result.status[i] = kSeqNonFinite;
  }
  step.named = std::move(named);
  if (can_hang_ && ((deadly && dice_.Chance(0.3)) || dice_.Chance(faults_.hang))) {
    hung_ = true;
  } else if (deadly) {
    step.fate = Fate::kDies;
  } else if (dice_.Chance(faults_.garble)) {
    step.fate = Fate::kGarbles;
    step.result.slot.pop_back();
  }
  last_ready_ = std::max(now, last_ready_) + dice_.Between(0, max_step_);
  step.ready = hung_ ? kNever : last_ready_;
  in_flight_.push_back(std::move(step));
  return Status::Ok();
}

bool Worker::Computes(const Positions& positions, const StepPlan& plan, SequenceKey key, size_t i) {
  const auto it = positions.find(key.first);
  if (it == positions.end()) return false;
  const auto first = static_cast<int32_t>(plan.first_position[i]);
  const auto end = first + static_cast<int32_t>(plan.num_tokens[i]);
  return it->second < 0 || (it->second >= first && it->second < end);
}

void Worker::Forget(RequestId request) {
  deadly_.erase(request);
  non_finite_.erase(request);
}

std::vector<SequenceKey> Worker::Named() const {
  std::vector<SequenceKey> named;
  for (const Step& step : in_flight_) {
    named.insert(named.end(), step.named.begin(), step.named.end());
  }
  return named;
}

void Worker::Stop() {
  in_flight_.clear();
  model_.Reset();
  last_ready_ = 0;
  hung_ = false;
}

void Worker::Hang() {
  if (!can_hang_) return;
  hung_ = true;
  for (Step& step : in_flight_) step.ready = kNever;
}

void Worker::BeginStart(TimeNs now) { started_at_ = now + dice_.Between(0, faults_.max_restart); }

Status Worker::TakeStarted() {
  started_at_ = kNever;
  const bool fails = fail_starts_ > 0 || dice_.Chance(faults_.failed_start);
  if (fail_starts_ > 0) --fail_starts_;
  return fails ? Status::Internal("it cannot be started") : Status::Ok();
}

}  // namespace slipstream::simulation
