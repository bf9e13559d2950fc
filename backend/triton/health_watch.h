// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "executor/executor.h"

namespace slipstream::triton {

// Logs the failures of a model's worker and the changes of its health. When the model is dead it
// ends the process, if `exit_on_fatal` is set, since a server that cannot serve any more is better
// restarted; otherwise it has the model withdrawn.
class HealthWatch {
 public:
  static constexpr int kExitCode = 70;  // EX_SOFTWARE
  struct Options {
    std::string model;
    bool exit_on_fatal = false;
    std::function<Health()> health;
    std::function<WorkerFailure()> failure;  // the last one
    std::function<bool()> idle;              // every client has its last response
    // Takes the dead model out of the server's readiness; false: to be tried again.
    std::function<bool()> withdraw;
  };
  explicit HealthWatch(Options options);
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

 private:
  void Run();
  bool Wait(int milliseconds);  // false when stopping
  void Die();

  const Options options_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace slipstream::triton
