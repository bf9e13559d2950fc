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

PieceJoiner Joiner(const Workload& workload) {
  return workload.byte_fallback ? PieceJoiner::kByteFallback : PieceJoiner::kByteLevel;
}

std::shared_ptr<const TokenTable> LoadTable(const WorkerInfo& info) {
  return TokenTable::FromMsgpack(info.token_table).value();
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
      script_(workload.worker.vocab_size, Joiner(workload)),
      worker_(workload, script_.TokenTableBytes()),
      engine_(workload.config, worker_.Info(), LoadTable(worker_.Info())),
      supervisor_(workload.config, &engine_),
      traffic_(workload, engine_.limits(), &script_),
      ledger_(workload, &script_, options_.keep_outcomes),
      fairness_(workload),
      overseer_(workload, &supervisor_),
      dice_(Mix64(workload.seed, 4)) {
  const Status pools = CheckKvGroups(worker_.Info(), workload.config);
  if (!pools.ok()) Break(pools.message());
  if (workload.num_requests > 0) next_arrival_ = traffic_.Next();
}

void Simulation::Break(const std::string& what) {
  if (Broken()) return;
  broken_ = "at moment " + std::to_string(moment_) + ", step " + std::to_string(tally_.steps) +
            ": " + what;
}

void Simulation::Expect(const std::string& wrong) {
  if (!wrong.empty()) Break(wrong);
}

// The turns of Executor::Run.
std::string Simulation::Run() {
  for (bool ended = workload_.num_requests == 0; !Broken() && !ended;) {
    TakeIn();
    engine_.ExpireDeadlines(now_);
    Publish();  // waits are counted until here
    if (supervisor_.serving()) {
      Receive();
      SendSteps();
      CheckWatchdog();
    } else if (supervisor_.BeginStart(now_)) {
      Expect(overseer_.OnBegin(now_));
      worker_.BeginStart(now_);
    }
    if (!supervisor_.serving()) Moment();
    Publish();
    if (!Broken()) ended = HasEnded();
    if (!Broken() && !ended) Advance();
  }
  if (!Broken()) CheckQuiescence();
  MetricsSnapshot metrics;
  engine_.FillMetrics(&metrics);
  tally_.preemptions = metrics.preemptions;
  tally_.hit_tokens = metrics.kv_hit_tokens;
  tally_.end = now_;
  return broken_;
}

void Simulation::TakeIn() {
  if (!draining_ && workload_.drain.at <= now_) BeginDrain(workload_.drain.patience);
  while (next_arrival_ && next_arrival_->at <= now_) Submit();
  supervisor_.EndLateRequests(now_);
  if (worker_.started_at() <= now_) Started();
}

void Simulation::Submit() {
  Arrival arrival = std::move(*next_arrival_);
  next_arrival_.reset();
  const RequestId id = ++last_id_;
  ++tally_.requests;
  if (tally_.requests < workload_.num_requests) next_arrival_ = traffic_.Next();
  // The one that arrives first was accepted just before the door was closed.
  if (draining_ || (GivenUp() && std::exchange(took_late_, true))) {
    ++tally_.closed;
    return;
  }
  RequestSpec& spec = arrival.spec;
  if (options_.injection && options_.injection->kind == Injection::Kind::kDeadline &&
      options_.injection->request == id) {
    spec.deadline = options_.injection->at;
  }
  const int64_t start = RealNs();
  auto request = Request::Create(spec, engine_.limits());
  const Status status =
      request.ok() ? engine_.Submit(id, std::move(*request), now_) : request.status();
  tally_.scheduler_ns += RealNs() - start;
  if (!status.ok()) {
    ++tally_.rejected;
    return CheckRefusal(spec, status);
  }
  ledger_.OnAccepted(id, arrival);
  fairness_.OnAccepted(id, spec, now_);
  if (arrival.deadly_position >= 0) worker_.AddDeadly(id, arrival.deadly_position);
  if (arrival.non_finite_position >= 0) worker_.AddNonFinite(id, arrival.non_finite_position);
  if (arrival.cancel_after >= 0) {
    const std::string client_id = arrival.stop_client ? spec.client_id : "";
    cancels_.emplace(moment_ + arrival.cancel_after, std::make_pair(id, client_id));
  }
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
  while (!Broken() && supervisor_.serving() && worker_.HasReply(now_)) {
    const Worker::Step& step = worker_.in_flight().front();
    if (step.fate == Worker::Fate::kDies) return Fail("it died of a step");
    const bool garbled = step.fate == Worker::Fate::kGarbles;
    for (size_t i = 0; i < step.named.size() && !garbled; ++i) {
      const bool finite = step.result.status[i] == kSeqOk;
      if (finite && step.result.num_tokens[i] > 0) ledger_.OnSampled(step.named[i]);
    }
    const int64_t start = RealNs();
    const Status status = engine_.OnResult(step.result, now_);
    tally_.scheduler_ns += RealNs() - start;
    if (garbled && status.ok()) return Break("it took a garbled answer");
    if (garbled) return Fail(status.message());
    if (!status.ok()) return Break(status.message());
    worker_.PopReply();
    supervisor_.OnAnswer(now_);
    overseer_.OnAnswer(now_);
    Moment();
  }
}

void Simulation::SendSteps() {
  while (!Broken() && supervisor_.serving()) {
    const int64_t start = RealNs();
    const bool built = engine_.BuildStep(now_, &plan_);
    const int64_t took = RealNs() - start;
    tally_.build_ns += took;
    tally_.scheduler_ns += took;
    if (!built) {
      if (worker_.in_flight().empty() && engine_.live_requests() > 0) {
        Break("nothing runs while " + std::to_string(engine_.live_requests()) + " requests wait");
      }
      return;
    }
    ++tally_.steps;
    std::vector<SequenceKey> named;
    if (engine_.in_trial()) {
      fairness_.OnTrial(plan_);
    } else {
      Expect(fairness_.OnPlan(plan_, now_, &named));
    }
    if (Broken()) return;
    overseer_.OnSent(now_, worker_.in_flight().empty());
    supervisor_.OnSent(now_);
    const Status sent = worker_.Send(plan_, std::move(named), now_);
    if (!sent.ok()) return Break(sent.message());
    Moment();
  }
}

void Simulation::CheckWatchdog() {
  if (Broken() || !supervisor_.serving()) return;
  const Status status = supervisor_.CheckWatchdog(now_);
  if (status.ok()) return;
  ++tally_.hangs;
  Expect(overseer_.OnWatchdog(worker_.hangs(), now_));
  Fail(status.message());
}

void Simulation::Started() {
  const Status status = worker_.TakeStarted();
  Publish();
  supervisor_.OnStarted(status, now_);
  if (!status.ok()) return AfterFailure({});
  fairness_.OnServing(now_);
  Moment();
}

void Simulation::Publish() {
  const std::vector<Event> events = engine_.TakeEvents();
  std::string wrong = ledger_.OnEvents(events, now_);
  for (size_t i = 0; i < events.size() && wrong.empty(); ++i) {
    if (events[i].reason == FinishReason::kNone) continue;
    wrong = fairness_.OnEnded({events[i].request, events[i].sequence_index}, now_);
    if (events[i].request_done) worker_.Forget(events[i].request);
  }
  Expect(wrong);
}

bool Simulation::HasEnded() {
  if (!draining_) {
    const bool closed = !next_arrival_ || (GivenUp() && took_late_);
    return closed && engine_.idle();
  }
  if (now_ >= drain_deadline_) ledger_.OnDrained();
  const bool drained = supervisor_.Drained(drain_deadline_, now_);
  Publish();
  return drained;
}

void Simulation::Advance() {
  Expect(overseer_.CheckNothingDue(worker_.hangs(), now_));
  TimeNs next = std::min(engine_.next_deadline(), supervisor_.next_wake());
  next = std::min({next, worker_.started_at(), draining_ ? drain_deadline_ : workload_.drain.at});
  if (next_arrival_) next = std::min(next, next_arrival_->at);
  if (!worker_.in_flight().empty()) next = std::min(next, worker_.in_flight().front().ready);
  if (next == kNever) return Break("time stands still");
  now_ = std::max(now_ + 1, next);
}

void Simulation::CheckQuiescence() {
  if (ledger_.num_live() > 0) return Break("a request got no terminal event");
  MetricsSnapshot m;
  engine_.FillMetrics(&m);
  Expect(overseer_.CheckCounts(m.worker_restarts));
  if (!engine_.idle()) return;  // shut down with steps in flight
  if (m.kv_blocks_used != 0 || m.kv_bytes_used != 0) return Break("blocks are used by nobody");
  if (m.kv_blocks_free + m.kv_blocks_cached != m.kv_blocks_total) return Break("blocks are lost");
  if (m.running != 0 || m.waiting != 0 || m.waiting_tokens != 0 || m.preempted != 0) {
    return Break("the queues are not empty");
  }
  Expect(engine_.CheckIntegrity());
}

}  // namespace slipstream::simulation
