// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/summary.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace slipstream::simulation {

void Summary::Add(const Simulation& simulation) {
  const Simulation::Tally& tally = simulation.tally();
  const Fairness& fairness = simulation.fairness();
  ++runs_;
  total_.requests += tally.requests;
  total_.rejected += tally.rejected;
  total_.steps += tally.steps;
  total_.closed += tally.closed;
  total_.failures += tally.failures;
  total_.hangs += tally.hangs;
  total_.give_ups += tally.give_ups;
  total_.drains += tally.drains;
  total_.drains_recovering += tally.drains_recovering;
  total_.scheduler_ns += tally.scheduler_ns;
  total_.end += tally.end;
  total_.preemptions += tally.preemptions;
  total_.hit_tokens += tally.hit_tokens;
  total_.build_ns += tally.build_ns;
  scheduled_ += fairness.scheduled();
  tokens_ += simulation.ledger().delivered_tokens();
  text_bytes_ += simulation.ledger().delivered_bytes();
  longest_row_ = std::max(longest_row_, simulation.overseer().longest_row());
  longest_back_off_ = std::max(longest_back_off_, simulation.overseer().longest_back_off());
  for (size_t c = 0; c < waits_.size(); ++c) {
    const Fairness::Waits& waits = fairness.waits()[c];
    waits_[c].count += waits.count;
    waits_[c].steps = std::max(waits_[c].steps, waits.steps);
    waits_[c].time = std::max(waits_[c].time, waits.time);
  }
  for (size_t i = 0; i < finished_.size(); ++i) {
    finished_[i] += simulation.ledger().finished(static_cast<FinishReason>(i));
  }
  worst_share_ = std::max(worst_share_, fairness.worst_share());
  if (fairness.longest_wait() > longest_wait_) {
    longest_wait_ = fairness.longest_wait();
    bound_of_wait_ = fairness.bound_of_longest();
  }
  if (fairness.longest_stall() > longest_stall_) {
    longest_stall_ = fairness.longest_stall();
    bound_of_stall_ = fairness.stall_bound();
  }
}

std::string Summary::Text(double seconds) const {
  const auto steps = static_cast<double>(total_.steps);
  const double build_s = static_cast<double>(total_.build_ns) * 1e-9;
  const double scheduler_s = static_cast<double>(total_.scheduler_ns) * 1e-9;
  std::ostringstream text;
  text << std::fixed << std::setprecision(1);
  text << "workloads " << runs_ << ", requests " << total_.requests << ", refused "
       << total_.rejected << " and at a closed door " << total_.closed << ", tokens " << tokens_
       << ", bytes of text " << text_bytes_ << ", " << seconds << " s\nends:";
  for (size_t i = 1; i < finished_.size(); ++i) {
    text << " " << FinishReasonName(static_cast<FinishReason>(i)) << " " << finished_[i];
  }
  text << "\npreemptions " << total_.preemptions << ", reused tokens " << total_.hit_tokens
       << "\nworker failures " << total_.failures << " (most in a row " << longest_row_
       << ", longest back-off " << static_cast<double>(longest_back_off_) * 1e-6
       << " ms), of them hangs " << total_.hangs << ", given up " << total_.give_ups << ", drains "
       << total_.drains << ", of them while restarting " << total_.drains_recovering << "\nsteps "
       << total_.steps << ": BuildStep " << build_s / steps * 1e6 << " us each, "
       << std::setprecision(0) << steps / build_s << " steps/s and "
       << static_cast<double>(scheduled_) / build_s
       << " scheduled sequences/s in it\nSubmit, BuildStep and OnResult: " << steps / scheduler_s
       << " steps/s, " << static_cast<double>(total_.requests) / scheduler_s
       << " requests/s; with the worker and every check " << steps / seconds << " steps/s, "
       << static_cast<double>(total_.requests) / seconds << " requests/s\nlongest wait "
       << longest_wait_ << " steps (bound " << bound_of_wait_ << "), closest to a bound "
       << std::setprecision(2) << worst_share_ << "; longest without progress " << longest_stall_
       << " steps (bound " << bound_of_stall_ << ")\n"
       << std::setprecision(1);
  for (size_t c = 0; c < waits_.size(); ++c) {
    if (waits_[c].count == 0) continue;
    text << "class " << c << ": " << waits_[c].count << " waits, longest " << waits_[c].steps
         << " steps, " << static_cast<double>(waits_[c].time) * 1e-6 << " ms\n";
  }
  return text.str();
}

}  // namespace slipstream::simulation
