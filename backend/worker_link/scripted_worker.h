// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "executor/worker_port.h"
#include "worker_link/scripted_config.h"
#include "worker_link/scripted_model.h"
#include "worker_link/wake_fd.h"

namespace slipstream {

// A test double of the worker: a ScriptedModel on a thread of its own, with the delays and faults
// of its configuration. Good for tests and for measuring everything but the model.
//
// A plan that breaks the contract ends it, as an error of a real worker would.
class ScriptedWorker : public WorkerPort {
 public:
  explicit ScriptedWorker(ScriptedWorkerConfig config);
  ~ScriptedWorker() override;

  StatusOr<WorkerInfo> Start(const Progress& progress) override;
  Status Send(const StepPlan& plan) override;
  Reply Receive(StepResult* result, std::string* why) override;
  std::vector<uint64_t> TakeExpertTokens() override;
  int fd() const override { return running_ ? ready_.get() : -1; }
  void Stop() override;
  void Interrupt() override;

  // From any thread. Over all starts, except live_slots.
  ScriptedCounters counters() const;

 private:
  struct Sent {
    StepPlan plan;
    int64_t sent_ns;
  };

  Status PretendToLoad(const Progress& progress);
  void Run();
  bool ServeNext();
  bool Strikes(int64_t at_step) const;
  void Fail(const std::string& why);
  bool SleepUntil(int64_t ready_ns);

  const ScriptedWorkerConfig config_;
  ScriptedModel model_;        // worker thread; between runs, the caller's
  std::minstd_rand jitter_;    // worker thread
  int64_t last_ready_ns_ = 0;  // worker thread
  int64_t step_ = 0;           // worker thread; of this run
  int32_t starts_ = 0;         // caller
  int32_t failed_starts_ = 0;  // caller
  bool running_ = false;       // caller
  std::thread thread_;         // caller
  WakeFd ready_;               // readable while Receive has something

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  bool stopping_ = false;
  bool interrupted_ = false;
  bool failed_ = false;
  std::string why_;
  std::deque<Sent> plans_;
  std::deque<StepResult> results_;
  ScriptedCounters counters_;
  std::vector<uint64_t> expert_tokens_;  // not taken yet; empty: none
};

}  // namespace slipstream
