// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/health_watch.h"

#include <chrono>
#include <utility>

#include "triton/error.h"

namespace slipstream::triton {

HealthWatch::HealthWatch(Options options)
    : options_(std::move(options)), thread_([this] { Run(); }) {}

HealthWatch::~HealthWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

bool HealthWatch::Wait(int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !wake_.wait_for(lock, std::chrono::milliseconds(milliseconds),
                         [this] { return stopping_; });
}

void HealthWatch::Run() {
  Health last = options_.health();
  uint64_t failures = 0;
  while (Wait(100)) {
    WatchServer();
    const Health now = options_.health();
    const WorkerFailure failure = options_.failure();
    if (failure.count != failures) LogError("model " + options_.model + ": " + failure.why);
    failures = failure.count;
    if (now != last) {
      const std::string line =
          "model " + options_.model + " was " + HealthName(last) + ", is " + HealthName(now);
      if (now == Health::kReady) {
        LogInfo(line);
      } else {
        LogError(line);
      }
      last = now;
    }
    if (now != Health::kDead) continue;
    if (const std::string why = WhyExit(); !why.empty()) return Die(why);
  }
}

void HealthWatch::WatchServer() {
  if (ended_requests_) return;
  const auto now = std::chrono::steady_clock::now();
  if (!drained_at_) {
    const bool serving = options_.serving();
    if (has_served_ && !serving) {
      drained_at_ = now + std::chrono::milliseconds(options_.drain_timeout_ms);
    }
    has_served_ = serving;
  } else if (now >= *drained_at_) {
    ended_requests_ = true;
    if (!options_.idle()) {
      LogWarning("model " + options_.model +
                 ": the server ends; requests that outlived drain_timeout_ms = " +
                 std::to_string(options_.drain_timeout_ms) + " are ended");
    }
    options_.end_requests();
  }
}

std::string HealthWatch::WhyExit() {
  if (options_.exit_on_fatal.value_or(false)) return "exit_on_fatal is set";
  if (withdrawal_ == Withdrawal::kLater) withdrawal_ = options_.withdraw();
  // The others may die, or be unloaded, later than this one.
  if (!options_.exit_on_fatal && withdrawal_ == Withdrawal::kRefused && options_.last()) {
    return "the server cannot be told, nor does another model live here";
  }
  return "";
}

void HealthWatch::Die(const std::string& why) {
  // The clients' errors first: at most 5 s for handing them over, then a moment for the sockets.
  for (int i = 0; i < 50 && !options_.idle(); ++i) {
    if (!Wait(100)) return;
  }
  if (!Wait(500)) return;
  LogError("model " + options_.model + " is dead and " + why + ": exiting with code " +
           std::to_string(kExitCode));
  options_.exit(kExitCode);
}

}  // namespace slipstream::triton
