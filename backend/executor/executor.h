// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "executor/admission.h"
#include "executor/engine.h"
#include "executor/event.h"
#include "executor/executor_metrics.h"
#include "executor/request.h"
#include "executor/supervisor.h"
#include "executor/token_table.h"
#include "executor/worker_port.h"

namespace slipstream {

struct RequestHandle {
  RequestId id = 0;
};

// Starting -> Ready <-> Recovering -> Dead;  Ready or Recovering -> Draining -> Stopped.
enum class Health : uint8_t {
  kStarting = 0,
  kReady,       // a token can be served now
  kRecovering,  // the worker died or hung and is being restarted; live streams wait for it
  kDraining,    // shutdown was asked for, whatever the worker does: accepted requests run to their
                // end, new ones are refused
  kDead,        // out of restarts: every request got its error
  kStopped,
};
const char* HealthName(Health health);

// The brain's thread: takes requests from any thread, drives the Engine, talks to the worker, does
// what the Supervisor decides when that fails, hands events to the sink. Engine, Supervisor and
// everything below them belong to this thread alone; other threads reach it through the inbox.
class Executor {
 public:
  // Loads the model (blocking; `progress` may be null) and starts the thread. `sink` must outlive
  // the Executor. Fails with the worker's own message when the model cannot be loaded.
  static StatusOr<std::unique_ptr<Executor>> Create(const ExecutorConfig& config,
                                                    std::unique_ptr<WorkerPort> port,
                                                    EventSink* sink,
                                                    const WorkerPort::Progress& progress);
  ~Executor();  // Shutdown(without drain)
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Validates and queues. The errors are final: no event follows. Otherwise exactly one event with
  // request_done does. kInvalidArgument / kUnsupported: the caller's; kUnavailable: the queue is
  // full, draining or dead. Events may arrive before Submit returns: what identifies them is the
  // context (RequestSpec::context).
  StatusOr<RequestHandle> Submit(RequestSpec spec);
  // All of them, to begin in the same step if it has room, or none.
  StatusOr<std::vector<RequestHandle>> SubmitAll(std::vector<RequestSpec> specs);

  // Whether Submit() would find the queue too full for so much more, for a caller that has work to
  // do before it can submit; `ahead` is on its way here, too. Returns how many more sequences could
  // be. kUnavailable counts as a rejected request.
  StatusOr<int64_t> CheckRoom(QueueLoad more, int32_t priority, QueueLoad ahead = {});

  // Idempotent; unknown or finished handles are ignored. The request still gets its terminal event.
  void Cancel(RequestHandle handle);

  // Cancels every live request whose client id equals `client_id`; returns nothing because that is
  // decided on the executor's thread.
  void CancelByClientId(const std::string& client_id);

  // Stops accepting. drain: waits until every accepted request has ended, at most `deadline`
  // (CLOCK_MONOTONIC ns); whatever is left then ends as cancelled (UNAVAILABLE, "shutting down").
  void Shutdown(bool drain, TimeNs deadline);

  // The last failure of the worker and how many there were; any thread.
  WorkerFailure last_failure() const;
  // Why requests are refused; ok while they are accepted.
  Status closed_why() const;
  Health health() const;
  const RequestLimits& limits() const { return limits_; }
  const WorkerInfo& worker_info() const { return worker_info_; }
  const std::shared_ptr<const TokenTable>& token_table() const { return token_table_; }
  // A consistent copy of counters and gauges, refreshed after every step; any thread.
  MetricsSnapshot Metrics() const;

 private:
  struct Inbox;
  class Counted;

  Executor(const ExecutorConfig& config, std::unique_ptr<WorkerPort> port, EventSink* sink);
  Status Load(const WorkerPort::Progress& progress);
  void Run();
  void DrainInbox(TimeNs now);
  void PumpResults();
  void AddExpertTokens();
  void SendSteps();
  void PublishEvents();
  void PublishMetrics();
  void OnWorkerFailure(const std::string& why);
  void RestartWorker();
  void OnRestarted(const Status& status);
  void PublishFailure();
  bool ShouldExit(TimeNs now);
  void WaitForWork();
  void Wake();

  ExecutorConfig config_;             // constant after Create
  std::unique_ptr<WorkerPort> port_;  // executor thread, or the restart thread while it runs
  EventSink* const sink_;
  RequestLimits limits_;    // constant after Create
  WorkerInfo worker_info_;  // constant after Create
  std::shared_ptr<const TokenTable> token_table_;
  std::unique_ptr<Engine> engine_;                 // executor thread
  std::unique_ptr<Supervisor> supervisor_;         // executor thread
  std::unique_ptr<Inbox> inbox_;                   // guarded by its own mutex
  std::atomic<Health> health_{Health::kStarting};  // but for kDraining
  std::atomic<bool> draining_{false};
  std::atomic<uint64_t> next_id_{1};
  int wake_fd_ = -1;

  // Executor thread only.
  StepPlan plan_;
  StepResult result_;
  std::shared_ptr<const ExpertLoad> expert_load_;  // replaced, never changed; null without experts
  std::thread restart_thread_;

  std::thread thread_;
};

}  // namespace slipstream
