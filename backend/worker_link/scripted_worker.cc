// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/scripted_worker.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "worker_link/channel.h"

namespace slipstream {
namespace {

std::chrono::steady_clock::time_point TimePoint(int64_t ns) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(ns));
}

}  // namespace

ScriptedWorker::ScriptedWorker(ScriptedWorkerConfig config)
    : config_(std::move(config)),
      model_(config_),
      jitter_(static_cast<uint32_t>(config_.seed ^ (config_.seed >> 32)) | 1) {}

ScriptedWorker::~ScriptedWorker() { Stop(); }

StatusOr<WorkerInfo> ScriptedWorker::Start(const Progress& progress) {
  Stop();
  const Status loaded = PretendToLoad(progress);
  if (!loaded.ok()) return loaded;
  if (failed_starts_ < config_.fail_starts) {
    ++failed_starts_;
    return Status::Internal("scripted failure of start " + std::to_string(failed_starts_));
  }
  model_.Reset();
  step_ = 0;
  last_ready_ns_ = 0;
  ++starts_;
  running_ = true;
  thread_ = std::thread([this] { Run(); });
  return model_.Info();
}

Status ScriptedWorker::PretendToLoad(const Progress& progress) {
  const int64_t begin_ns = MonotonicNs();
  const int64_t end_ns = begin_ns + config_.start_ms * 1000000;
  for (int step = 0; step <= 10; ++step) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait_until(lock, TimePoint(begin_ns + (end_ns - begin_ns) * step / 10),
                          [&] { return interrupted_; });
      if (std::exchange(interrupted_, false)) {
        return Status::Unavailable("the start of the scripted worker was interrupted");
      }
    }
    if (progress) progress(step / 10.0, "pretending to load");
  }
  return Status::Ok();
}

Status ScriptedWorker::Send(const StepPlan& plan) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_ || failed_) return Status::Unavailable("the scripted worker is not running");
  plans_.push_back({plan, MonotonicNs()});
  changed_.notify_all();
  return Status::Ok();
}

WorkerPort::Reply ScriptedWorker::Receive(StepResult* result, std::string* why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!results_.empty()) {
    *result = std::move(results_.front());
    results_.pop_front();
    if (results_.empty() && !failed_) ready_.Clear();
    return Reply::kResult;
  }
  if (running_ && !failed_) return Reply::kNone;
  *why = running_ ? why_ : "the scripted worker is not running";
  return Reply::kFailed;
}

std::vector<uint64_t> ScriptedWorker::TakeExpertTokens() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(expert_tokens_, {});
}

void ScriptedWorker::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  const std::lock_guard<std::mutex> lock(mutex_);
  stopping_ = false;
  running_ = false;
  failed_ = false;
  plans_.clear();
  results_.clear();
  counters_.live_slots = 0;
  ready_.Clear();
}

void ScriptedWorker::Interrupt() {
  const std::lock_guard<std::mutex> lock(mutex_);
  interrupted_ = true;
  changed_.notify_all();
}

ScriptedCounters ScriptedWorker::counters() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counters_;
}

void ScriptedWorker::Run() {
  while (ServeNext()) {
  }
}

bool ScriptedWorker::Strikes(int64_t at_step) const {
  return at_step == step_ && starts_ <= config_.fault_count;
}

// False when the worker has ended.
bool ScriptedWorker::ServeNext() {
  Sent sent;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stopping_ || !plans_.empty(); });
    if (stopping_) return false;
    sent = std::move(plans_.front());
    plans_.pop_front();
  }
  ++step_;
  if (Strikes(config_.stall_at_step)) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stopping_; });
    return false;
  }
  StatusOr<StepResult> result = model_.Run(sent.plan);
  const int64_t jitter_us = config_.step_jitter_us == 0 ? 0
                                                        : std::uniform_int_distribution<int64_t>(
                                                              0, config_.step_jitter_us)(jitter_);
  const int64_t period_ns = (config_.step_us + jitter_us) * 1000;
  if (period_ns > 0) {
    last_ready_ns_ = std::max(sent.sent_ns, last_ready_ns_) + period_ns;
    if (!SleepUntil(last_ready_ns_)) return false;
  }
  const std::string step = "step " + std::to_string(step_);
  if (!result.ok()) return Fail("the scripted worker failed: " + result.status().message()), false;
  if (Strikes(config_.die_at_step)) {
    return Fail("the scripted worker died: scripted death at " + step), false;
  }
  if (Strikes(config_.fail_at_step)) {
    return Fail("the scripted worker failed: scripted failure at " + step), false;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  results_.push_back(std::move(result).value());
  counters_ = model_.counters();
  const std::vector<uint64_t>& tokens = model_.expert_tokens();
  expert_tokens_.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) expert_tokens_[i] += tokens[i];
  if (results_.size() == 1) ready_.Set();
  return true;
}

bool ScriptedWorker::SleepUntil(int64_t ready_ns) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !changed_.wait_until(lock, TimePoint(ready_ns), [&] { return stopping_; });
}

void ScriptedWorker::Fail(const std::string& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  failed_ = true;
  why_ = why;
  ready_.Set();
}

}  // namespace slipstream
