// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/engine.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "executor/admission.h"

namespace slipstream {
namespace {

KvGroups::Options KvOptions(const ExecutorConfig& config, const WorkerInfo& worker) {
  return {worker.kv_groups, worker.tokens_per_block, config.enable_prefix_reuse,
          config.enable_partial_reuse};
}

ExecutorConfig WithWorkerWishes(ExecutorConfig config, const WorkerInfo& worker) {
  config.send_history |= worker.wants_history;
  return config;
}

// Tokens of one sequence that the pools can hold; windowed ones hold every sequence.
int64_t CapacityTokens(const WorkerInfo& worker) {
  const KvGroup& first = worker.kv_groups.front();
  if (first.windowed()) return std::numeric_limits<int64_t>::max();
  return int64_t{first.num_blocks} * worker.tokens_per_block;
}

std::unique_ptr<RequestState> MakeTrial(const RequestLimits& limits) {
  RequestSpec spec;
  spec.prompt = {0};
  spec.max_new_tokens = 1;
  auto request = Request::Create(std::move(spec), limits);
  if (!request.ok()) return nullptr;
  auto state = std::make_unique<RequestState>(RequestState{0, std::move(*request), 0, {}, 1, 0, 0});
  state->sequences.push_back(
      std::make_unique<Sequence>(state.get(), 0, SequenceOutput(state->request, nullptr)));
  Sequence& sequence = *state->sequences.front();
  sequence.tokens = {0};
  sequence.prompt_len = 1;
  sequence.slot = 0;
  return state;
}

double Seconds(TimeNs ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

struct Engine::Cursor {
  size_t token = 0;
  size_t logprob = 0;
  size_t logit = 0;
};

Engine::Engine(const ExecutorConfig& config, const WorkerInfo& worker,
               std::shared_ptr<const TokenTable> token_table)
    : config_(WithWorkerWishes(config, worker)),
      vocab_size_(worker.vocab_size),
      token_table_(std::move(token_table)),
      scheduler_(config_, KvOptions(config, worker)) {
  limits_.vocab_size = worker.vocab_size;
  limits_.max_seq_len = worker.max_seq_len;
  limits_.kv_capacity_tokens = CapacityTokens(worker);
  limits_.max_prompt_tokens = config.enable_chunked_prefill ? 0 : config.max_num_tokens;
  limits_.max_queue_requests = config.max_queue_requests;
  limits_.max_queue_tokens = config.max_queue_tokens;
  limits_.tokens_per_block = worker.tokens_per_block;
  limits_.max_logprobs = config.max_logprobs;
  limits_.has_token_table = token_table_ != nullptr;
  limits_.wrap_out_of_vocab_ids = config.wrap_out_of_vocab_ids;
  trial_ = MakeTrial(limits_);
  InitHistograms(&counters_);
  counters_.max_num_seqs = config.max_num_seqs;
  counters_.tokens_per_block = worker.tokens_per_block;
  counters_.kv_bytes = scheduler_.kv().total_bytes();
}

Engine::~Engine() = default;

Status Engine::Submit(RequestId id, Request request, TimeNs now) {
  const RequestSpec& spec = request.spec();
  const int32_t n = spec.num_return_sequences;
  const Status room =
      MakeRoom({n, int64_t{n} * request.prompt_len()}, request.spec().priority, now);
  if (!room.ok()) {
    ++counters_.requests_rejected;
    return room;
  }
  auto state =
      std::make_unique<RequestState>(RequestState{id, std::move(request), now, {}, n, 0, 0});
  const RequestSpec& s = state->request.spec();
  for (int32_t i = 0; i < n; ++i) {
    auto seq =
        std::make_unique<Sequence>(state.get(), i, SequenceOutput(state->request, token_table_));
    seq->order = next_order_++;
    seq->tokens = s.prompt;
    seq->prompt_len = state->request.prompt_len();
    seq->max_len = seq->prompt_len + s.max_new_tokens;
    seq->limit = seq->max_len - 1;
    seq->kv.hashes = state->request.block_hashes();
    seq->perf.arrival_ns = s.arrival.value_or(now);
    scheduler_.Enqueue(seq.get());
    state->sequences.push_back(std::move(seq));
  }
  if (s.deadline != kNever) deadlines_.emplace(s.deadline, id);
  if (!s.client_id.empty()) by_client_id_.emplace(s.client_id, id);
  counters_.input_tokens.Observe(state->request.prompt_len());
  ++counters_.requests_accepted;
  requests_.emplace(id, std::move(state));
  return Status::Ok();
}

// In a full queue a request takes the places of those of worse classes.
Status Engine::MakeRoom(QueueLoad more, int32_t priority, TimeNs now) {
  const WaitingQueue& waiting = scheduler_.waiting();
  const Status full = CheckQueue(config_, waiting.load(), more);
  if (full.ok()) return full;
  const std::vector<RequestState*> displaced = waiting.ToDisplace(config_, more, priority, now);
  if (displaced.empty()) return full;
  const Status why = Status::Unavailable(kDisplaced);
  for (RequestState* request : displaced) {
    ++counters_.requests_displaced;
    Finish(request->id, FinishReason::kError, why, now);
  }
  return Status::Ok();
}

void Engine::Refuse(RequestId id, std::shared_ptr<ClientContext> context, const Status& why) {
  Event event;
  event.request = id;
  event.reason = FinishReason::kError;
  event.request_done = true;
  event.error = why;
  event.context = std::move(context);
  events_.push_back(std::move(event));
}

bool Engine::Finish(RequestId id, FinishReason reason, const Status& why, TimeNs now) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || it->second->unfinished == 0) return false;
  RequestState* request = it->second.get();
  for (size_t i = 0; i < request->sequences.size(); ++i) {
    Sequence* sequence = request->sequences[i].get();
    if (!sequence->finished()) FinishSequence(sequence, reason, why, now);
  }
  DropIfDone(request);
  return true;
}

void Engine::FinishByClientId(const std::string& client_id, TimeNs now) {
  std::vector<RequestId> ids;
  const auto range = by_client_id_.equal_range(client_id);
  for (auto it = range.first; it != range.second; ++it) ids.push_back(it->second);
  for (const RequestId id : ids) {
    Finish(id, FinishReason::kCancelled, Status::Cancelled("stopped by a stop request"), now);
  }
}

void Engine::FinishAll(FinishReason reason, const Status& why, TimeNs now) {
  std::vector<RequestId> ids;
  for (const auto& entry : requests_) ids.push_back(entry.first);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) Finish(id, reason, why, now);
}

void Engine::ExpireDeadlines(TimeNs now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const RequestId id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    Finish(id, FinishReason::kDeadline, Status::DeadlineExceeded(kDeadlinePassed), now);
  }
}

TimeNs Engine::next_deadline() const {
  return deadlines_.empty() ? kNever : deadlines_.begin()->first;
}

bool Engine::BuildStep(TimeNs now, StepPlan* plan) {
  if (steps_in_flight() >= config_.pipeline_depth || trial_state_ == TrialState::kInFlight) {
    return false;
  }
  if (trial_state_ == TrialState::kDue) {
    BuildTrial(plan);
    return true;
  }
  StepRecord record;
  record.step_id = next_step_;
  if (!spare_entries_.empty()) {
    record.entries = std::move(spare_entries_.back());
    spare_entries_.pop_back();
  }
  scheduler_.Build(next_step_, now, plan, &record.entries);
  if (plan->empty()) {
    spare_entries_.push_back(std::move(record.entries));
    return false;
  }
  ++next_step_;
  NoteStep(record);
  in_flight_.push_back(std::move(record));
  return true;
}

void Engine::NoteStep(const StepRecord& record) {
  counters_.scheduled = static_cast<int32_t>(record.entries.size());
  counters_.context_requests = 0;
  counters_.context_tokens = 0;
  for (const ScheduledEntry& entry : record.entries) {
    Sequence* s = entry.sequence;
    const int32_t first = s->scheduled - entry.num_tokens;
    if (first < s->prompt_len) {
      ++counters_.context_requests;
      counters_.context_tokens += std::min(entry.num_tokens, s->prompt_len - first);
    }
    if (!s->queue_observed) {
      s->queue_observed = true;
      counters_.queue_time_s.Observe(Seconds(s->perf.first_scheduled_ns - s->perf.arrival_ns));
      counters_.prompt_tokens += s->prompt_len;
      counters_.kv_lookup_tokens += s->prompt_len;
    }
    if (s->cached_tokens > s->cached_counted) {
      counters_.kv_hit_tokens += s->cached_tokens - s->cached_counted;
      counters_.kv_reused_blocks +=
          (s->cached_tokens - s->cached_counted) / counters_.tokens_per_block;
      s->cached_counted = s->cached_tokens;
    }
  }
  counters_.generation_requests = counters_.scheduled - counters_.context_requests;
}

void Engine::BeginTrial() {
  if (trial_ != nullptr) trial_state_ = TrialState::kDue;
}

void Engine::BuildTrial(StepPlan* plan) {
  assert(in_flight_.empty());
  trial_state_ = TrialState::kInFlight;
  StepRecord record;
  record.step_id = next_step_++;
  scheduler_.BuildTrial(record.step_id, trial_->sequences.front().get(), plan, &record.entries);
  in_flight_.push_back(std::move(record));
}

Status Engine::CheckShape(const StepRecord& record, const StepResult& r) const {
  const size_t n = record.entries.size();
  const auto bad = [&](const std::string& what) {
    return Status::Internal("the worker's answer to step " + std::to_string(record.step_id) +
                            " is malformed: " + what);
  };
  if (r.step_id != record.step_id) return bad("it names step " + std::to_string(r.step_id));
  if (r.slot.size() != n || r.status.size() != n || r.num_tokens.size() != n ||
      r.logprob_width.size() != n || r.context_rows.size() != n || r.generation_rows.size() != n) {
    return bad("it has " + std::to_string(r.slot.size()) + " of " + std::to_string(n) +
               " sequences");
  }
  size_t tokens = 0, logprobs = 0, rows = 0;
  for (size_t i = 0; i < n; ++i) {
    const ScheduledEntry& e = record.entries[i];
    const bool ok = r.status[i] == kSeqOk;
    if (r.slot[i] != static_cast<uint32_t>(e.sequence->slot)) return bad("slots out of order");
    if (ok && r.num_tokens[i] != (e.samples ? 1u : 0u)) return bad("number of sampled tokens");
    if (r.context_rows[i] != 0 &&
        (!e.context_logits || r.context_rows[i] != static_cast<uint32_t>(e.num_tokens))) {
      return bad("number of context logit rows");
    }
    if (r.generation_rows[i] > r.num_tokens[i]) return bad("number of generation logit rows");
    tokens += r.num_tokens[i];
    logprobs += size_t{r.num_tokens[i]} * r.logprob_width[i];
    rows += r.context_rows[i] + r.generation_rows[i];
  }
  if (tokens != r.tokens.size()) return bad("token count");
  if (logprobs != r.logprob_ids.size() || logprobs != r.logprob_values.size()) {
    return bad("log probability count");
  }
  if (rows * static_cast<size_t>(vocab_size_) != r.logits.size()) return bad("logit count");
  for (const int32_t token : r.tokens) {
    if (token < 0 || token >= vocab_size_) return bad("token id " + std::to_string(token));
  }
  return Status::Ok();
}

Status Engine::OnResult(const StepResult& result, TimeNs now) {
  if (in_flight_.empty()) return Status::Internal("the worker answered a step that was not sent");
  const Status shape = CheckShape(in_flight_.front(), result);
  if (!shape.ok()) return shape;
  StepRecord record = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (std::exchange(trial_state_, TrialState::kNone) == TrialState::kInFlight) return Status::Ok();
  ++counters_.steps;
  Cursor cursor;
  for (size_t i = 0; i < record.entries.size(); ++i) {
    ApplyEntry(record.entries[i], result, i, &cursor, now);
  }
  record.entries.clear();
  spare_entries_.push_back(std::move(record.entries));
  return Status::Ok();
}

void Engine::ApplyEntry(const ScheduledEntry& entry, const StepResult& r, size_t i, Cursor* cursor,
                        TimeNs now) {
  Sequence* s = entry.sequence;
  RequestState* request = s->request;
  --s->in_flight;
  s->pending -= entry.samples ? 1 : 0;
  const float* logits = r.logits.data() + cursor->logit;
  if (!s->finished()) {
    const size_t context = size_t{r.context_rows[i]} * vocab_size_;
    auto& rows = s->output.event().context_logits;
    rows.insert(rows.end(), logits, logits + context);
    if (r.status[i] != kSeqOk) {
      FinishSequence(s, FinishReason::kError,
                     Status::Internal("the model produced non-finite logits (NaN or infinity)"),
                     now);
    } else if (r.num_tokens[i] > 0) {
      AcceptToken(s, r, i, *cursor, r.generation_rows[i] > 0 ? logits + context : nullptr, now);
    }
  }
  cursor->token += r.num_tokens[i];
  cursor->logprob += size_t{r.num_tokens[i]} * r.logprob_width[i];
  cursor->logit += size_t{r.context_rows[i] + r.generation_rows[i]} * vocab_size_;
  if (s->finished()) {
    ReleaseIfDone(s);
    DropIfDone(request);
  } else if (s->preempting && s->in_flight == 0) {
    scheduler_.Preempt(s);
  }
}

void Engine::AcceptToken(Sequence* s, const StepResult& r, size_t i, const Cursor& cursor,
                         const float* logits, TimeNs now) {
  SampledToken token;
  token.id = r.tokens[cursor.token];
  token.logprob_width = static_cast<int32_t>(r.logprob_width[i]);
  token.logprob_ids = r.logprob_ids.data() + cursor.logprob;
  token.logprob_values = r.logprob_values.data() + cursor.logprob;
  token.logits = logits;
  token.vocab_size = vocab_size_;
  s->tokens.push_back(token.id);
  s->request->losses = 0;
  ++counters_.generated_tokens;
  ObserveToken(s, now);
  const FinishReason reason =
      s->output.Accept(token, s->spec(), s->num_generated(), s->max_len - s->prompt_len);
  scheduler_.OnTokens(s, now);
  if (reason != FinishReason::kNone) {
    FinishSequence(s, reason, Status::Ok(), now);
  } else if (s->spec().streaming) {
    EmitEvent(s, FinishReason::kNone);
  }
}

void Engine::ObserveToken(Sequence* s, TimeNs now) {
  if (s->perf.first_token_ns == 0) {
    s->perf.first_token_ns = now;
    counters_.time_to_first_token_s.Observe(Seconds(now - s->perf.arrival_ns));
  } else {
    counters_.inter_token_latency_s.Observe(Seconds(now - s->last_token_at));
  }
  s->last_token_at = now;
}

void Engine::FinishSequence(Sequence* s, FinishReason reason, const Status& why, TimeNs now) {
  const bool natural = reason == FinishReason::kStop || reason == FinishReason::kStopSequence ||
                       reason == FinishReason::kLength;
  if (!natural) {
    s->output.Close(s->spec());
    s->output.event().error = why;
  }
  s->perf.last_token_ns = s->last_token_at;
  ++counters_.finished[static_cast<size_t>(reason)];
  counters_.e2e_latency_s.Observe(Seconds(now - s->perf.arrival_ns));
  counters_.output_tokens.Observe(s->num_generated());
  const bool waiting = s->state == Sequence::State::kWaiting;
  if (waiting) scheduler_.Release(s);
  s->state = Sequence::State::kFinished;
  --s->request->unfinished;
  EmitEvent(s, reason);
  if (!waiting) ReleaseIfDone(s);
}

void Engine::EmitEvent(Sequence* s, FinishReason reason) {
  Event event = s->output.Take();
  event.request = s->request->id;
  event.sequence_index = s->index;
  event.reason = reason;
  event.request_done = reason != FinishReason::kNone && s->request->unfinished == 0;
  event.usage = {s->prompt_len, s->num_generated(), s->cached_tokens};
  event.perf = s->perf;
  event.context = s->spec().context;
  events_.push_back(std::move(event));
}

// Finished is not freed: slot and blocks stay until no step in flight names them.
void Engine::ReleaseIfDone(Sequence* s) {
  if (s->finished() && s->in_flight == 0 && s->slot >= 0) scheduler_.Release(s);
}

void Engine::DropIfDone(RequestState* request) {
  for (const auto& s : request->sequences) {
    if (!s->finished() || s->slot >= 0) return;
  }
  const RequestSpec& spec = request->request.spec();
  deadlines_.erase({spec.deadline, request->id});
  const auto range = by_client_id_.equal_range(spec.client_id);
  for (auto it = range.first; it != range.second; ++it) {
    if (it->second == request->id) {
      by_client_id_.erase(it);
      break;
    }
  }
  requests_.erase(request->id);
}

void Engine::OnWorkerLost(const Status& why, TimeNs now) {
  if (trial_state_ == TrialState::kInFlight) in_flight_.clear();  // nobody's
  trial_state_ = TrialState::kNone;
  std::vector<RequestId> culprits;
  for (const StepRecord& record : in_flight_) {
    for (const ScheduledEntry& entry : record.entries) {
      Sequence* s = entry.sequence;
      // Rows of the prompt's logits are kept only whole.
      if (entry.context_logits && s->num_generated() == 0) s->context_logits_done = false;
      RequestState* request = s->request;
      if (request->lost_step == in_flight_.back().step_id) continue;
      request->lost_step = in_flight_.back().step_id;
      if (++request->losses > config_.max_restarts) culprits.push_back(request->id);
    }
  }
  in_flight_.clear();
  scheduler_.Restart();
  // A request that was there at every one of these deaths, with no token in between, is taken for
  // their cause: the others go on without it.
  for (const RequestId id : culprits) Finish(id, FinishReason::kError, why, now);
  std::vector<RequestState*> all;
  for (const auto& entry : requests_) all.push_back(entry.second.get());
  for (RequestState* request : all) {
    for (const auto& s : request->sequences) {
      if (!s->finished() && !s->context_logits_done) s->output.event().context_logits.clear();
    }
    DropIfDone(request);
  }
}

std::vector<Event> Engine::TakeEvents() {
  std::vector<Event> events;
  events.swap(events_);
  return events;
}

void Engine::FillMetrics(MetricsSnapshot* m) const {
  *m = counters_;
  const KvGroups& kv = scheduler_.kv();
  const auto& running = scheduler_.running();
  m->running = static_cast<int32_t>(std::count_if(
      running.begin(), running.end(), [](const Sequence* s) { return !s->finished(); }));
  m->waiting = scheduler_.waiting().size();
  m->preempted = scheduler_.waiting().preempted();
  m->waiting_tokens = scheduler_.waiting().tokens();
  m->waiting_fresh = scheduler_.waiting().fresh();
  m->step_in_flight = steps_in_flight();
  m->kv_blocks_total = kv.num_total();
  m->kv_blocks_used = kv.num_used();
  m->kv_blocks_cached = kv.num_cached();
  m->kv_blocks_free = kv.num_free();
  m->kv_bytes_used = kv.used_bytes();
  m->kv_evicted_blocks = kv.num_evicted();
  m->preemptions = scheduler_.preemptions();
}

std::string Engine::CheckIntegrity() const {
  std::vector<const Sequence*> all;
  std::unordered_map<const Sequence*, int32_t> named;
  for (const StepRecord& record : in_flight_) {
    for (const ScheduledEntry& entry : record.entries) ++named[entry.sequence];
  }
  for (const auto& [id, request] : requests_) {
    int32_t unfinished = 0;
    for (const auto& s : request->sequences) {
      all.push_back(s.get());
      unfinished += s->finished() ? 0 : 1;
      if (s->in_flight != named[s.get()]) return "a sequence miscounts its steps in flight";
      const bool waits = scheduler_.waiting().Contains(s.get());
      if (waits != (s->state == Sequence::State::kWaiting)) return "state and queue disagree";
      if (waits && s->slot >= 0) return "a waiting sequence holds a slot";
    }
    if (unfinished != request->unfinished) return "a request miscounts its sequences";
  }
  return scheduler_.CheckIntegrity(all);
}

}  // namespace slipstream
