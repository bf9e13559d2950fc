// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace slipstream::kernels {

// Threads that do numbered tasks in no particular order. For use by one thread, which helps.
class TaskPool {
 public:
  // threads: including the caller's, at least 1.
  explicit TaskPool(int threads);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls task(i, thread) for every i below count, with threads counted from 0; returns when all
  // are done.
  void Run(int64_t count, const std::function<void(int64_t, int)>& task);

 private:
  void Help(int thread);
  void DoTasks(int thread);

  // Written by Run before it opens a round, read by those that join while it is open. A helper that
  // comes too late has missed the round: on a busy machine nobody waits for it to be scheduled.
  const std::function<void(int64_t, int)>* task_ = nullptr;
  int64_t count_ = 0;
  bool open_ = false;  // guarded by mutex_
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};  // helpers that joined; grows under mutex_ alone
  std::atomic<uint64_t> round_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
};

}  // namespace slipstream::kernels
