// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "executor/supervisor.h"
#include "simulation/workload.h"

namespace slipstream::simulation {

// Holds the Supervisor to what it promises, reckoned anew from what happened:
// - it gives up at the failure that is one more than max_restarts in a row without a step between,
//   and never otherwise; and never at all when deadly requests are all that kill workers;
// - the first restart of a row is immediate, each later one waits twice as long as the one before,
//   from restart_backoff_ms up to 10 s; none is early and none is late;
// - the watchdog strikes when the oldest step in flight has had watchdog_ms since it could begin,
//   and only if its worker hangs;
// - failures and restarts are counted.
class Overseer {
 public:
  Overseer(const Workload& workload, const Supervisor* supervisor)
      : config_(workload.config),
        only_deadly_(workload.faults.OnlyDeadlyKill() && workload.config.max_restarts > 0),
        supervisor_(supervisor) {}

  void OnSent(TimeNs now, bool first_in_flight);
  void OnAnswer(TimeNs now);
  // Each of these returns what is wrong, or nothing. After the Supervisor heard of a failure.
  std::string OnFailure(TimeNs now);
  std::string OnWatchdog(bool hangs, TimeNs now) const;
  std::string OnBegin(TimeNs now);
  // When nothing is left to do at `now` but to wait.
  std::string CheckNothingDue(bool hangs, TimeNs now) const;
  std::string CheckCounts(uint64_t worker_restarts) const;

  uint64_t failures() const { return failures_; }
  int32_t longest_row() const { return longest_row_; }
  TimeNs longest_back_off() const { return longest_back_off_; }

 private:
  TimeNs BackOff() const;

  const ExecutorConfig config_;
  const bool only_deadly_;
  const Supervisor* const supervisor_;
  TimeNs begun_at_ = 0;  // the oldest step in flight
  TimeNs due_at_ = 0;    // the next start
  int32_t in_a_row_ = 0;
  uint64_t failures_ = 0;
  uint64_t restarts_ = 0;
  uint64_t starts_ = 0;
  int32_t longest_row_ = 0;
  TimeNs longest_back_off_ = 0;
};

}  // namespace slipstream::simulation
