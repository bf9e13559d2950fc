// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/simulation.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace slipstream::simulation {
namespace {

int64_t RealNs() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

bool CanWait(const RequestSpec& spec, const RequestLimits& limits) {
  const int64_t tokens = spec.num_return_sequences * static_cast<int64_t>(spec.prompt.size());
  return (limits.max_queue_requests == 0 ||
          spec.num_return_sequences <= limits.max_queue_requests) &&
         (limits.max_queue_tokens == 0 || tokens <= limits.max_queue_tokens);
}

}  // namespace

Simulation::Simulation(const Workload& workload, Options options)
    : workload_(workload),
      options_(std::move(options)),
      model_(workload.worker),
      engine_(workload.config, model_.Info(), nullptr),
      traffic_(workload, engine_.limits()),
      ledger_(workload.worker.vocab_size, workload.config.max_restarts, options_.keep_outcomes),
      fairness_(workload),
      dice_(Mix64(workload.seed, 4)) {
  const Status pools = CheckKvGroups(model_.Info(), workload.config);
  if (!pools.ok()) Break(pools.message());
  if (workload.num_requests > 0) next_arrival_ = traffic_.Next();
}

void Simulation::Break(const std::string& what) {
  if (Broken()) return;
  broken_ = "at moment " + std::to_string(moment_) + ", step " + std::to_string(tally_.steps) +
            ": " + what;
}

std::string Simulation::Run() {
  while (!Broken() && (next_arrival_ || !engine_.idle())) {
    while (next_arrival_ && next_arrival_->at <= now_) Submit();
    engine_.ExpireDeadlines(now_);
    Receive();
    SendSteps();
    Publish();
    if (!Broken()) Advance();
  }
  if (!Broken()) CheckQuiescence();
  MetricsSnapshot metrics;
  engine_.FillMetrics(&metrics);
  tally_.preemptions = metrics.preemptions;
  tally_.hit_tokens = metrics.kv_hit_tokens;
  return broken_;
}

void Simulation::Submit() {
  Arrival arrival = std::move(*next_arrival_);
  next_arrival_.reset();
  const RequestId id = ++last_id_;
  ++tally_.requests;
  if (tally_.requests < workload_.num_requests) next_arrival_ = traffic_.Next();
  RequestSpec& spec = arrival.spec;
  if (options_.injection && options_.injection->kind == Injection::Kind::kDeadline &&
      options_.injection->request == id) {
    spec.deadline = options_.injection->at;
  }
  auto request = Request::Create(spec, engine_.limits());
  const Status status =
      request.ok() ? engine_.Submit(id, std::move(*request), now_) : request.status();
  if (!status.ok()) {
    ++tally_.rejected;
    return CheckRefusal(spec, status);
  }
  ledger_.OnAccepted(id, spec);
  fairness_.OnAccepted(id, spec, now_);
  if (arrival.cancel_after >= 0) cancels_.emplace(moment_ + arrival.cancel_after, id);
  if (options_.keep_outcomes) arrived_at_[id] = moment_;
  if (options_.progress) options_.progress(tally_.requests);
}

// What can never fit is refused, and nothing else but what finds the queue full.
void Simulation::CheckRefusal(const RequestSpec& spec, const Status& status) {
  const RequestLimits& limits = engine_.limits();
  const int64_t total = static_cast<int64_t>(spec.prompt.size()) + spec.max_new_tokens;
  const bool fits = total <= limits.max_seq_len && total - 1 <= limits.kv_capacity_tokens &&
                    (limits.max_prompt_tokens == 0 ||
                     static_cast<int32_t>(spec.prompt.size()) <= limits.max_prompt_tokens) &&
                    CanWait(spec, limits);
  const StatusCode code = fits ? StatusCode::kUnavailable : StatusCode::kInvalidArgument;
  const bool bounded =
      workload_.config.max_queue_requests > 0 || workload_.config.max_queue_tokens > 0;
  if (status.code() != code || (fits && !bounded)) Break("refused: " + status.message());
}

void Simulation::Receive() {
  while (!Broken() && !in_flight_.empty() && in_flight_.front().ready <= now_) {
    const InFlight step = std::move(in_flight_.front());
    in_flight_.pop_front();
    for (size_t i = 0; i < step.named.size(); ++i) {
      if (step.result.num_tokens[i] > 0) ledger_.OnSampled(step.named[i]);
    }
    const Status status = engine_.OnResult(step.result, now_);
    if (!status.ok()) return Break(status.message());
    Moment();
  }
}

void Simulation::SendSteps() {
  while (!Broken() && !Recovering()) {
    const int64_t start = RealNs();
    const bool built = engine_.BuildStep(now_, &plan_);
    tally_.build_ns += RealNs() - start;
    if (!built) {
      if (in_flight_.empty() && engine_.live_requests() > 0) {
        Break("nothing runs while " + std::to_string(engine_.live_requests()) + " requests wait");
      }
      return;
    }
    ++tally_.steps;
    InFlight step;
    const std::string wrong = fairness_.OnPlan(plan_, &step.named);
    if (!wrong.empty()) return Break(wrong);
    auto result = model_.Run(plan_);
    if (!result.ok()) return Break(result.status().message());
    step.result = std::move(*result);
    last_ready_ = std::max(now_, last_ready_) + dice_.Between(0, workload_.max_step);
    step.ready = last_ready_;
    in_flight_.push_back(std::move(step));
    Moment();
  }
}

void Simulation::Moment() {
  Publish();
  ++moment_;
  ++now_;
  if (options_.keep_outcomes) moments_.push_back(now_);
  const std::string broken = engine_.CheckIntegrity();
  if (!broken.empty()) return Break(broken);
  engine_.ExpireDeadlines(now_);
  while (!cancels_.empty() && cancels_.begin()->first <= moment_) {
    Cancel(cancels_.begin()->second);
    cancels_.erase(cancels_.begin());
  }
  if (options_.injection && options_.injection->moment == moment_) Inject();
  if (workload_.death > 0 && dice_.Chance(workload_.death)) KillWorker();
  Publish();
  const std::string unsound = engine_.CheckIntegrity();
  if (!unsound.empty()) Break("after a disturbance: " + unsound);
}

void Simulation::Inject() {
  const Injection& injection = *options_.injection;
  if (injection.kind == Injection::Kind::kCancel) Cancel(injection.request);
  if (injection.kind == Injection::Kind::kDeath) KillWorker();
}

void Simulation::Cancel(RequestId id) {
  Publish();
  const bool live = ledger_.IsLive(id);
  if (live) ledger_.OnCancel(id);
  const bool ended =
      engine_.Finish(id, FinishReason::kCancelled, Status::Cancelled("cancelled"), now_);
  if (ended != live) Break("a cancel ended " + std::to_string(id) + " although it had ended");
}

void Simulation::KillWorker() {
  Publish();
  ++tally_.deaths;
  std::vector<SequenceKey> named;
  for (const InFlight& step : in_flight_) {
    named.insert(named.end(), step.named.begin(), step.named.end());
  }
  ledger_.OnDeath(named);
  fairness_.OnDeath();
  in_flight_.clear();
  model_.Reset();
  engine_.OnWorkerLost(Status::Internal("the worker died"), now_);
  last_ready_ = now_;
  recovered_at_ = now_ + dice_.Between(0, workload_.max_restart);
  Publish();
  const std::string wrong = ledger_.CheckEnded();
  if (!wrong.empty()) Break(wrong);
}

void Simulation::Publish() {
  const std::vector<Event> events = engine_.TakeEvents();
  std::string wrong = ledger_.OnEvents(events, now_);
  for (size_t i = 0; i < events.size() && wrong.empty(); ++i) {
    if (events[i].reason == FinishReason::kNone) continue;
    wrong = fairness_.OnEnded({events[i].request, events[i].sequence_index});
  }
  if (!wrong.empty()) Break(wrong);
}

void Simulation::Advance() {
  if (engine_.idle() && !next_arrival_) return;
  TimeNs next = engine_.next_deadline();
  if (next_arrival_) next = std::min(next, next_arrival_->at);
  if (!in_flight_.empty()) next = std::min(next, in_flight_.front().ready);
  if (Recovering()) next = std::min(next, recovered_at_);
  if (next == kNever) return Break("time stands still");
  now_ = std::max(now_ + 1, next);
}

void Simulation::CheckQuiescence() {
  if (ledger_.num_live() > 0) return Break("a request got no terminal event");
  MetricsSnapshot m;
  engine_.FillMetrics(&m);
  if (m.kv_blocks_used != 0 || m.kv_bytes_used != 0) return Break("blocks are used by nobody");
  if (m.kv_blocks_free + m.kv_blocks_cached != m.kv_blocks_total) return Break("blocks are lost");
  if (m.running != 0 || m.waiting != 0 || m.waiting_tokens != 0 || m.preempted != 0) {
    return Break("the queues are not empty");
  }
  const std::string broken = engine_.CheckIntegrity();
  if (!broken.empty()) Break(broken);
}

}  // namespace slipstream::simulation
