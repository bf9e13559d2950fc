// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/overseer.h"

#include <algorithm>

namespace slipstream::simulation {
namespace {

constexpr TimeNs kMillisecond = 1000000;
constexpr TimeNs kLate = 1000;  // what the moments of one turn of the loop may add up to

std::string Ms(TimeNs ns) { return std::to_string(static_cast<double>(ns) / 1e6) + " ms"; }

}  // namespace

void Overseer::OnSent(TimeNs now, bool first_in_flight) {
  if (first_in_flight) begun_at_ = now;
}

void Overseer::OnAnswer(TimeNs now) {
  begun_at_ = now;
  in_a_row_ = 0;
}

TimeNs Overseer::BackOff() const {
  if (in_a_row_ == 1) return 0;
  int64_t ms = config_.restart_backoff_ms;
  for (int32_t i = 1; i < in_a_row_ && ms < 10000; ++i) ms *= 2;
  return std::min<int64_t>(ms, 10000) * kMillisecond;
}

std::string Overseer::OnFailure(TimeNs now) {
  ++failures_;
  ++in_a_row_;
  longest_row_ = std::max(longest_row_, in_a_row_);
  const bool gives_up = in_a_row_ > config_.max_restarts;
  const bool gave_up = supervisor_->state() == Supervisor::State::kGivenUp;
  if (gives_up != gave_up) {
    return std::string(gave_up ? "it gave up" : "it goes on") + " after " +
           std::to_string(in_a_row_) + " failures in a row";
  }
  if (gave_up && only_deadly_) return "deadly requests brought the worker down for good";
  if (supervisor_->failure().count != failures_) return "the failures are miscounted";
  if (gave_up == supervisor_->given_up().ok()) return "given up or not, with or without a reason";
  if (gave_up) return "";
  if (supervisor_->state() != Supervisor::State::kBackOff) return "it waits for no restart";
  ++restarts_;
  due_at_ = now + BackOff();
  longest_back_off_ = std::max(longest_back_off_, BackOff());
  return "";
}

std::string Overseer::OnWatchdog(bool hangs, TimeNs now) const {
  if (!hangs) return "the watchdog struck a worker that does not hang";
  const TimeNs had = now - begun_at_;
  if (had >= config_.watchdog_ms * kMillisecond) return "";
  return "the watchdog struck after " + Ms(had);
}

std::string Overseer::OnBegin(TimeNs now) {
  ++starts_;
  if (now < due_at_) return "a restart " + Ms(due_at_ - now) + " too early";
  return now - due_at_ <= kLate ? "" : "a restart " + Ms(now - due_at_) + " too late";
}

std::string Overseer::CheckNothingDue(bool hangs, TimeNs now) const {
  if (supervisor_->state() == Supervisor::State::kBackOff && now > due_at_ + kLate) {
    return "a restart is overdue";
  }
  if (supervisor_->serving() && hangs &&
      now > begun_at_ + config_.watchdog_ms * kMillisecond + kLate) {
    return "the watchdog sleeps";
  }
  return "";
}

std::string Overseer::CheckCounts(uint64_t worker_restarts) const {
  if (worker_restarts == restarts_ && starts_ <= restarts_ && starts_ + 1 >= restarts_) return "";
  return std::to_string(worker_restarts) + " restarts are counted, " + std::to_string(restarts_) +
         " were decided, " + std::to_string(starts_) + " begun";
}

}  // namespace slipstream::simulation
