// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/supervisor.h"

#include <algorithm>
#include <cassert>

namespace slipstream {
namespace {

constexpr TimeNs kMillisecond = 1000000;
constexpr int64_t kMaxBackOffMs = 10000;
constexpr int32_t kMaxDoublings = 14;  // of a pause of 1 ms: longer than the longest

}  // namespace

void Supervisor::OnAnswer(TimeNs now) {
  assert(!sent_at_.empty());
  sent_at_.pop_front();
  failures_in_a_row_ = 0;
  if (!sent_at_.empty()) sent_at_.front() = now;  // it could only start now
}

Status Supervisor::CheckWatchdog(TimeNs now) const {
  if (config_.watchdog_ms <= 0 || sent_at_.empty()) return Status::Ok();
  if (now - sent_at_.front() < config_.watchdog_ms * kMillisecond) return Status::Ok();
  return Status::Internal("no answer to a step within watchdog_ms = " +
                          std::to_string(config_.watchdog_ms));
}

void Supervisor::OnFailure(const std::string& why, TimeNs now) {
  assert(state_ == State::kServing);
  failure_ = {failure_.count + 1, "the worker failed: " + why};
  ++failures_in_a_row_;
  sent_at_.clear();
  engine_->OnWorkerLost(Status::Internal(failure_.why), now);
  if (failures_in_a_row_ > config_.max_restarts) return GiveUp(now);
  ++engine_->counters().worker_restarts;
  const int32_t doublings = std::min(failures_in_a_row_ - 1, kMaxDoublings);
  const int64_t back_off =
      std::min(kMaxBackOffMs, int64_t{config_.restart_backoff_ms} << doublings);
  // The first restart is immediate: streams are waiting.
  retry_at_ = failures_in_a_row_ == 1 ? now : now + back_off * kMillisecond;
  state_ = State::kBackOff;
}

void Supervisor::GiveUp(TimeNs now) {
  state_ = State::kGivenUp;
  given_up_ = Status::Unavailable(failure_.why + " (gave up after max_restarts = " +
                                  std::to_string(config_.max_restarts) + ")");
  engine_->FinishAll(FinishReason::kError, given_up_, now);
}

bool Supervisor::BeginStart(TimeNs now) {
  if (state_ != State::kBackOff || now < retry_at_) return false;
  state_ = State::kStarting;
  return true;
}

void Supervisor::OnStarted(const Status& status, TimeNs now) {
  assert(state_ == State::kStarting);
  state_ = State::kServing;
  if (!status.ok()) return OnFailure("restart failed: " + status.message(), now);
  engine_->BeginTrial();
}

void Supervisor::EndLateRequests(TimeNs now) {
  if (state_ == State::kGivenUp) engine_->FinishAll(FinishReason::kError, given_up_, now);
}

bool Supervisor::Drained(TimeNs deadline, TimeNs now) {
  if (engine_->live_requests() == 0) return true;
  if (now < deadline) return false;
  engine_->FinishAll(FinishReason::kCancelled, Status::Unavailable("shutting down"), now);
  return true;
}

TimeNs Supervisor::next_wake() const {
  if (state_ == State::kBackOff) return retry_at_;
  if (config_.watchdog_ms <= 0 || sent_at_.empty()) return kNever;
  return sent_at_.front() + config_.watchdog_ms * kMillisecond;
}

}  // namespace slipstream
