// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// What befalls a simulation at its moments: failures, cancels, shutdown.
#include <set>
#include <utility>

#include "simulation/simulation.h"

namespace slipstream::simulation {

void Simulation::Moment() {
  Publish();
  ++moment_;
  ++now_;
  if (options_.keep_outcomes) moments_.push_back(now_);
  Expect(engine_.CheckIntegrity());
  engine_.ExpireDeadlines(now_);
  while (!Broken() && !cancels_.empty() && cancels_.begin()->first <= moment_) {
    const auto& [id, client_id] = cancels_.begin()->second;
    if (client_id.empty()) {
      Cancel(id);
    } else {
      CancelClient(client_id);
    }
    cancels_.erase(cancels_.begin());
  }
  if (options_.injection) Inject();
  if (supervisor_.serving() && dice_.Chance(workload_.faults.death)) Fail("it died");
  Publish();
  const std::string unsound = engine_.CheckIntegrity();
  if (!unsound.empty()) Break("after a disturbance: " + unsound);
}

void Simulation::Inject() {
  using Kind = Injection::Kind;
  const Injection& injection = *options_.injection;
  const Kind kind = injection.kind;
  if (injection.moment + 1 == moment_) {
    if (kind == Kind::kDeathAndCancel) Cancel(injection.request);
    if (kind == Kind::kDeathAndDrain) BeginDrain(kNever);
    if (kind == Kind::kDeathAndStop) BeginDrain(0);
  }
  if (injection.moment != moment_) return;
  if (kind == Kind::kCancel) Cancel(injection.request);
  if (kind == Kind::kDeadly && ledger_.IsLive(injection.request)) {
    worker_.AddDeadly(injection.request, -1);
    ledger_.OnDeadly(injection.request);
  }
  if (kind == Kind::kHang) worker_.Hang();
  if (kind == Kind::kDrain) BeginDrain(kNever);
  if (kind == Kind::kStop) BeginDrain(0);
  if (kind == Kind::kGiveUp) worker_.FailStarts(workload_.config.max_restarts + 1);
  const std::set<Kind> deaths = {Kind::kDeath, Kind::kDeathAndCancel, Kind::kDeathAndDrain,
                                 Kind::kDeathAndStop, Kind::kGiveUp};
  if (deaths.count(kind) > 0) Fail("it died");
}

void Simulation::Cancel(RequestId id) {
  Publish();
  const bool live = ledger_.IsLive(id);
  if (live) ledger_.OnCancel(id);
  const bool ended =
      engine_.Finish(id, FinishReason::kCancelled, Status::Cancelled("cancelled"), now_);
  if (ended != live) Break("a cancel ended " + std::to_string(id) + " although it had ended");
  Publish();
}

void Simulation::CancelClient(const std::string& client_id) {
  Publish();
  ledger_.OnClientCancel(client_id);
  engine_.FinishByClientId(client_id, now_);
  Publish();
  Expect(ledger_.CheckEnded());
}

void Simulation::BeginDrain(TimeNs patience) {
  if (std::exchange(draining_, true)) return;
  drain_deadline_ = patience == kNever ? kNever : now_ + patience;
  ++tally_.drains;
  if (!supervisor_.serving() && !GivenUp()) ++tally_.drains_recovering;
}

void Simulation::Fail(const std::string& why) {
  Publish();
  const std::vector<SequenceKey> named = worker_.Named();
  worker_.Stop();
  supervisor_.OnFailure(why, now_);
  AfterFailure(named);
}

// named: by steps that were in flight.
void Simulation::AfterFailure(const std::vector<SequenceKey>& named) {
  ++tally_.failures;
  ledger_.OnFailure(named);
  fairness_.OnDeath(now_);
  Expect(overseer_.OnFailure(now_));
  if (GivenUp()) {
    ++tally_.give_ups;
    ledger_.OnGivenUp();
  }
  Publish();
  Expect(ledger_.CheckEnded());
  if (overseer_.failures() == workload_.drain.at_failure) BeginDrain(workload_.drain.patience);
}

}  // namespace slipstream::simulation
