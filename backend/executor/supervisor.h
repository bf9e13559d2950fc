// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "executor/engine.h"
#include "executor/engine_config.h"
#include "executor/request.h"
#include "executor/status.h"

namespace slipstream {

// Why the worker failed last, and how often it has failed.
struct WorkerFailure {
  uint64_t count = 0;
  std::string why;
};

// Decides what becomes of a worker that fails or hangs, and of the requests it leaves behind:
// whether and when it is started again, who is taken for the cause, when to give up. Like the
// Engine it has no thread, no clock and no worker: what happened goes in with its time, what to do
// comes out. The Executor's thread drives it in service, simulations drive it directly.
//
//   kServing -> kBackOff -> kStarting -> kServing;  a failure while serving or starting may lead to
//   kGivenUp, which is final.
class Supervisor {
 public:
  enum class State : uint8_t {
    kServing,   // steps may be sent
    kBackOff,   // the worker is stopped; BeginStart says when it is to be started again
    kStarting,  // it is being started: OnStarted must follow
    kGivenUp,   // out of restarts: every request got its error, and so will every further one
  };

  // `engine` must outlive it.
  Supervisor(const ExecutorConfig& config, Engine* engine) : config_(config), engine_(engine) {}

  // A step that Engine::BuildStep made is on its way.
  void OnSent(TimeNs now) { sent_at_.push_back(now); }
  // The oldest step in flight was answered, and Engine::OnResult took the answer.
  void OnAnswer(TimeNs now);
  // An error once the oldest step in flight has had watchdog_ms: pass its message to OnFailure.
  Status CheckWatchdog(TimeNs now) const;

  // While kServing: the worker failed, and was stopped. Its steps in flight are lost. Afterwards
  // the state is kBackOff or kGivenUp.
  void OnFailure(const std::string& why, TimeNs now);
  // True when the back-off is over: start the worker, which is kStarting from here on.
  bool BeginStart(TimeNs now);
  // How that start went. An error counts as a failure, and the worker was stopped after it.
  void OnStarted(const Status& status, TimeNs now);

  // When given up: ends requests that were accepted before, but reached the Engine only now.
  void EndLateRequests(TimeNs now);
  // While draining: true when no request is left. From `deadline` on it ends those that are.
  bool Drained(TimeNs deadline, TimeNs now);

  State state() const { return state_; }
  bool serving() const { return state_ == State::kServing; }
  const WorkerFailure& failure() const { return failure_; }
  // Why it gave up; ok unless it has.
  const Status& given_up() const { return given_up_; }
  // When BeginStart or CheckWatchdog may have something to say; kNever: at no time yet.
  TimeNs next_wake() const;

 private:
  void GiveUp(TimeNs now);

  const ExecutorConfig config_;
  Engine* const engine_;
  State state_ = State::kServing;
  std::deque<TimeNs> sent_at_;  // of the steps in flight; of the oldest, when it could begin
  int32_t failures_in_a_row_ = 0;
  TimeNs retry_at_ = 0;
  WorkerFailure failure_;
  Status given_up_;
};

}  // namespace slipstream
