// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "executor/status.h"
#include "worker_link/unique_fd.h"

namespace slipstream {

// A program that runs beside us, joined by one end of a socket pair. As soon as it exits it is
// reaped and whatever it left running in its group is killed; the destructor kills it. Thread-safe.
//
// The child is in a session of its own, so that a Ctrl-C in the terminal drains the server instead
// of killing its workers; default signal handlers, empty signal mask, no file descriptor but 0
// (/dev/null), 1 and 2 (our stderr) and 3 (its end of the pair).
//
// Threads: a keeper thread starts the child and waits for it. It must be the one that starts it:
// PR_SET_PDEATHSIG, which children use to end with us, fires when the *thread* that started them
// ends. It waits for this pid only, which neither needs nor disturbs a SIGCHLD handler of the
// process we live in.
class ChildProcess {
 public:
  static constexpr int kChildFd = 3;

  // argv[0] is looked up on PATH. *ours becomes our end of a fresh, non-blocking socket pair.
  static StatusOr<std::unique_ptr<ChildProcess>> Spawn(const std::vector<std::string>& argv,
                                                       UniqueFd* ours);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // SIGKILL to the child and whatever it started in its group; nothing once it was reaped.
  void Kill();
  // Waits until the child was reaped; false when that takes longer.
  bool WaitExit(int64_t timeout_ms);
  // "exit code 1", "killed by signal 9 (Killed)", or "running".
  std::string ExitDescription() const;

 private:
  ChildProcess() = default;
  void Keep(const std::vector<std::string>& argv, UniqueFd theirs);

  std::thread keeper_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_; pid_ is constant once started_.
  bool started_ = false;
  int spawn_error_ = 0;
  pid_t pid_ = -1;
  bool exited_ = false;
  int wait_status_ = -1;  // -1: unknown, someone else reaped it
};

}  // namespace slipstream
