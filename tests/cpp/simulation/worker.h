// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "executor/step.h"
#include "simulation/dice.h"
#include "simulation/ledger.h"
#include "simulation/workload.h"
#include "worker_link/scripted_model.h"

namespace slipstream::simulation {

// A worker in virtual time: a ScriptedModel whose steps and starts take time, and which fails as
// the workload's Faults say. What it is sent is applied at once; when that shows is `ready`.
class Worker {
 public:
  enum class Fate : uint8_t { kAnswers, kGarbles, kDies };
  struct Step {
    Fate fate = Fate::kAnswers;
    StepResult result;
    TimeNs ready = 0;  // kNever: it hangs
    std::vector<SequenceKey> named;
  };

  Worker(const Workload& workload, const std::string& token_table);

  WorkerInfo Info() const { return model_.Info(); }
  // An error: the plan broke the contract. `named`: the sequences that it names.
  Status Send(const StepPlan& plan, std::vector<SequenceKey> named, TimeNs now);
  const std::deque<Step>& in_flight() const { return in_flight_; }
  bool HasReply(TimeNs now) const { return !in_flight_.empty() && in_flight_.front().ready <= now; }
  void PopReply() { in_flight_.pop_front(); }
  bool hangs() const { return !in_flight_.empty() && in_flight_.front().ready == kNever; }
  // The sequences that steps in flight name.
  std::vector<SequenceKey> Named() const;
  void Stop();

  // Every step that computes this position of the request's sequences fails; -1: any position.
  void AddDeadly(RequestId request, int32_t position) { deadly_[request] = position; }
  // The logits after this position of the request's sequences are not finite.
  void AddNonFinite(RequestId request, int32_t position) { non_finite_[request] = position; }
  // It has ended.
  void Forget(RequestId request);
  void Hang();  // answers nothing any more, until it is started again

  // Begins a start; when it has an end, and how.
  void BeginStart(TimeNs now);
  TimeNs started_at() const { return started_at_; }
  Status TakeStarted();
  // So many starts fail, whatever else the Faults say.
  void FailStarts(int32_t count) { fail_starts_ = count; }

 private:
  using Positions = std::map<RequestId, int32_t>;
  static bool Computes(const Positions& positions, const StepPlan& plan, SequenceKey key, size_t i);

  const Faults faults_;
  const TimeNs max_step_;
  const bool can_hang_;
  ScriptedModel model_;
  Dice dice_;
  Positions deadly_;
  Positions non_finite_;
  std::deque<Step> in_flight_;
  TimeNs last_ready_ = 0;
  bool hung_ = false;
  TimeNs started_at_ = kNever;
  int32_t fail_starts_ = 0;
};

}  // namespace slipstream::simulation
