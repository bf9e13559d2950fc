// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "executor/executor.h"

namespace slipstream::triton {

// What became of taking a dead model out of the server's readiness.
enum class Withdrawal : uint8_t {
  kDone,
  kRefused,  // for good: the server goes on calling it ready
  kLater,    // to be tried again: the server starts or ends, or the model is being replaced
};

// Logs the failures of a model's worker and the changes of its health. When the model is dead, it
// sees to it that the server does not go on as if it were not: it has the model withdrawn, or ends
// the process, since a server that cannot serve any more is better restarted. When the server ends,
// it has the requests ended that outlive drain_timeout_ms: Triton finalizes a model only after its
// last request, and cuts off what is left at its own time-out.
class HealthWatch {
 public:
  static constexpr int kExitCode = 70;  // EX_SOFTWARE
  struct Options {
    std::string model;
    // Whether death ends the process. Unset: if the model cannot be withdrawn and was the `last`.
    std::optional<bool> exit_on_fatal;
    std::function<Health()> health;
    std::function<WorkerFailure()> failure;  // the last one
    std::function<bool()> idle;              // every client of a dead model has its last response
    std::function<Withdrawal()> withdraw;
    std::function<bool()> last;     // no other model lives in this process, or is being loaded
    std::function<bool()> serving;  // the server; false while it starts or ends
    int32_t drain_timeout_ms = 0;   // from its end on
    std::function<void()> end_requests;
    // Ends the process at once. Not exit(): destructors of the server would wait for what does not
    // come any more.
    std::function<void(int code)> exit = [](int code) { ::_exit(code); };
  };
  explicit HealthWatch(Options options);
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

 private:
  void Run();
  bool Wait(int milliseconds);  // false when stopping
  void WatchServer();
  // Why the process has to end, now that the model is dead; empty: it has not, so far.
  std::string WhyExit();
  void Die(const std::string& why);

  const Options options_;
  // Of the thread alone.
  Withdrawal withdrawal_ = Withdrawal::kLater;
  bool has_served_ = false;
  bool ended_requests_ = false;
  std::optional<std::chrono::steady_clock::time_point> drained_at_;  // set once the server ends
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace slipstream::triton
