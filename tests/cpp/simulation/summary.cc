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
  total_.deaths += tally.deaths;
  total_.preemptions += tally.preemptions;
  total_.hit_tokens += tally.hit_tokens;
  total_.build_ns += tally.build_ns;
  scheduled_ += fairness.scheduled();
  tokens_ += simulation.ledger().delivered_tokens();
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
  std::ostringstream text;
  text << std::fixed << std::setprecision(1);
  text << "workloads " << runs_ << ", requests " << total_.requests << ", refused "
       << total_.rejected << ", tokens " << tokens_ << ", " << seconds << " s\nends:";
  for (size_t i = 1; i < finished_.size(); ++i) {
    text << " " << FinishReasonName(static_cast<FinishReason>(i)) << " " << finished_[i];
  }
  text << "\npreemptions " << total_.preemptions << ", worker deaths " << total_.deaths
       << ", reused tokens " << total_.hit_tokens << "\nsteps " << total_.steps << ": BuildStep "
       << build_s / steps * 1e6 << " us each, " << std::setprecision(0) << steps / build_s
       << " steps/s and " << static_cast<double>(scheduled_) / build_s
       << " scheduled sequences/s in it; " << steps / seconds << " steps/s with every check\n"
       << "longest wait " << longest_wait_ << " steps (bound " << bound_of_wait_
       << "), closest to a bound " << std::setprecision(2) << worst_share_
       << "; longest without progress " << longest_stall_ << " steps (bound " << bound_of_stall_
       << ")\n";
  return text.str();
}

}  // namespace slipstream::simulation
