// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "kernels/task_pool.h"

namespace slipstream::kernels {
namespace {

// The next round of a step comes within microseconds; a sleeping thread would come too late.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

TaskPool::TaskPool(int threads) {
  for (int thread = 1; thread < threads; ++thread) {
    helpers_.emplace_back([this, thread] { Help(thread); });
  }
}

TaskPool::~TaskPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void TaskPool::Run(int64_t count, const std::function<void(int64_t, int)>& task) {
  task_ = &task;
  count_ = count;
  next_ = 0;
  if (helpers_.empty() || count <= 1) return DoTasks(0);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    ++round_;
  }
  wake_.notify_all();
  DoTasks(0);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
  }
  for (int spins = 0; busy_ != 0; ++spins) {
    spins < kSpins ? Pause() : std::this_thread::yield();
  }
}

void TaskPool::Help(int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && round_ == seen && !stop_; ++spins) Pause();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_ != seen || stop_; });
      if (stop_) return;
      seen = round_;
      if (!open_) continue;
      ++busy_;
    }
    DoTasks(thread);
    --busy_;
  }
}

void TaskPool::DoTasks(int thread) {
  for (int64_t i = next_++; i < count_; i = next_++) (*task_)(i, thread);
}

}  // namespace slipstream::kernels
