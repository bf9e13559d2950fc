// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "executor/status.h"
#include "executor/step.h"

namespace slipstream {

// The Executor's view of the model: something that takes plans and returns results, in order.
// One thread (the executor's) calls everything except Interrupt().
class WorkerPort {
 public:
  // fraction: 0..1 of the start-up done; what: for a progress line.
  using Progress = std::function<void(double fraction, const std::string& what)>;

  enum class Reply {
    kNone,    // nothing there
    kResult,  // *result is filled
    kFailed,  // *why says what happened; the worker is gone and every plan in flight is lost
  };

  virtual ~WorkerPort() = default;

  // Starts, or restarts, the worker and waits until its model is loaded. After it returns ok, no
  // state of an earlier run remains: KV is empty, no slot is admitted, no result is pending.
  virtual StatusOr<WorkerInfo> Start(const Progress& progress) = 0;

  // Never waits for a result. A failure means that the worker is gone.
  virtual Status Send(const StepPlan& plan) = 0;

  // Does not block. Results arrive in the order of the plans.
  virtual Reply Receive(StepResult* result, std::string* why) = 0;

  // Tokens that experts computed, as [WorkerInfo::expert_layers, num_experts], as far as Receive
  // has heard of them since the last call; empty if it has not. Restarts lose none.
  virtual std::vector<uint64_t> TakeExpertTokens() { return {}; }

  // Readable (poll) when Receive has something; changes only in Start. -1 before.
  virtual int fd() const = 0;

  // Ends the worker at once; plans in flight are lost. Idempotent; Start may follow.
  virtual void Stop() = 0;

  // From any thread: makes a Start that is waiting return UNAVAILABLE soon.
  virtual void Interrupt() = 0;
};

}  // namespace slipstream
