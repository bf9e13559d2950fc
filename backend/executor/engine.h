// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "executor/engine_config.h"
#include "executor/event.h"
#include "executor/executor_metrics.h"
#include "executor/scheduler.h"
#include "executor/sequence.h"
#include "executor/step.h"
#include "executor/token_table.h"

namespace slipstream {

// Everything the Executor decides, without a thread, a clock or a worker: calls go in, plans and
// events come out. Deterministic: the same calls give the same plans. The Executor's thread drives
// it in service; tests and simulations drive it directly.
class Engine {
 public:
  // CheckKvGroups must have accepted the worker.
  Engine(const ExecutorConfig& config, const WorkerInfo& worker,
         std::shared_ptr<const TokenTable> token_table);
  ~Engine();

  const RequestLimits& limits() const { return limits_; }

  // Admission control, then the queue. kUnavailable names the limit that is reached. In a full
  // queue requests of worse classes that have not begun end with kUnavailable instead.
  Status Submit(RequestId id, Request request, TimeNs now);
  // The terminal event of a request that was accepted elsewhere but cannot be queued after all.
  void Refuse(RequestId id, std::shared_ptr<ClientContext> context, const Status& why);
  // Ends a request for an outside reason; false if it is unknown or already ended.
  bool Finish(RequestId id, FinishReason reason, const Status& why, TimeNs now);
  void FinishByClientId(const std::string& client_id, TimeNs now);
  void FinishAll(FinishReason reason, const Status& why, TimeNs now);
  void ExpireDeadlines(TimeNs now);
  TimeNs next_deadline() const;

  // The next step; false when nothing can run or pipeline_depth steps are in flight. The plan must
  // be sent: the Engine counts it as in flight.
  bool BuildStep(TimeNs now, StepPlan* plan);
  // The answer to the oldest step in flight. An error means that the worker does not do what it was
  // asked: treat it as lost.
  Status OnResult(const StepResult& result, TimeNs now);
  // Steps in flight and all KV are gone; every live sequence will be computed again from its
  // tokens. A request that was in flight at more than max_restarts losses in a row, without a token
  // in between, ends with the error `why`, if it has not ended.
  void OnWorkerLost(const Status& why, TimeNs now);
  // A new worker starts: the next step is a trial, one token of nobody's, and nothing else is in
  // flight until it is answered. It tells a worker that fails from a request that it fails of.
  void BeginTrial();

  std::vector<Event> TakeEvents();
  bool has_events() const { return !events_.empty(); }

  int32_t steps_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  int32_t live_requests() const { return static_cast<int32_t>(requests_.size()); }
  bool in_trial() const { return trial_state_ != TrialState::kNone; }
  bool idle() const { return requests_.empty() && in_flight_.empty(); }
  void FillMetrics(MetricsSnapshot* snapshot) const;
  MetricsSnapshot& counters() { return counters_; }
  // Of the full group; a model without one has no events.
  void set_kv_event_sink(std::function<void(const PrefixTree::KvEvent&)> sink) {
    if (scheduler_.kv().full()) scheduler_.kv().full()->tree().set_event_sink(std::move(sink));
  }

  // Empty when every invariant holds, else the first that does not.
  std::string CheckIntegrity() const;

 private:
  Status MakeRoom(QueueLoad more, int32_t priority, TimeNs now);
  struct StepRecord {
    uint64_t step_id = 0;
    std::vector<ScheduledEntry> entries;
  };
  enum class TrialState : uint8_t { kNone, kDue, kInFlight };
  struct Cursor;  // where in a StepResult's arrays the next sequence's data begin

  Status CheckShape(const StepRecord& record, const StepResult& result) const;
  void ApplyEntry(const ScheduledEntry& entry, const StepResult& result, size_t i, Cursor* cursor,
                  TimeNs now);
  void AcceptToken(Sequence* sequence, const StepResult& result, size_t i, const Cursor& cursor,
                   const float* logits, TimeNs now);
  void FinishSequence(Sequence* sequence, FinishReason reason, const Status& why, TimeNs now);
  void EmitEvent(Sequence* sequence, FinishReason reason);
  void ReleaseIfDone(Sequence* sequence);
  void DropIfDone(RequestState* request);
  void BuildTrial(StepPlan* plan);
  void NoteStep(const StepRecord& record);
  void ObserveToken(Sequence* sequence, TimeNs now);

  const ExecutorConfig config_;
  const int32_t vocab_size_;
  RequestLimits limits_;
  std::shared_ptr<const TokenTable> token_table_;
  Scheduler scheduler_;
  std::unique_ptr<RequestState> trial_;  // null: a model so small that it has no room for one
  TrialState trial_state_ = TrialState::kNone;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::unordered_multimap<std::string, RequestId> by_client_id_;
  std::deque<StepRecord> in_flight_;
  std::vector<std::vector<ScheduledEntry>> spare_entries_;  // capacity to reuse
  std::set<std::pair<TimeNs, RequestId>> deadlines_;        // of live requests
  std::vector<Event> events_;
  uint64_t next_step_ = 1;
  uint64_t next_order_ = 1;
  MetricsSnapshot counters_;
};

}  // namespace slipstream
