// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/scheduler.h"

#include <algorithm>
#include <cassert>

#include "executor/admit_record.h"

namespace slipstream {
namespace {

// Admission walks the prefix tree once per block of the prompt. A step looks up at most about this
// many blocks, so that a burst of long cached prompts cannot stretch one step beyond a millisecond;
// the rest is admitted by the next step.
constexpr int32_t kMaxLookupsPerStep = 4096;

// Whether it needs further steps. One that has been scheduled to its limit only awaits answers.
bool GoesOn(const Sequence* s) {
  return !s->finished() && !s->preempting && s->scheduled < s->limit;
}

bool Before(const Sequence* a, const Sequence* b) {
  return a->rank != b->rank ? a->rank < b->rank : a->order < b->order;
}

// How many of the `remaining` tokens from position `first` on are computed next. An inner chunk
// ends with a block, so that others can share it and continue from there.
int32_t ChunkOf(int32_t remaining, int32_t first, int32_t budget, int32_t tokens_per_block) {
  const int32_t chunk = std::min(remaining, budget);
  const int32_t over = (first + chunk) % tokens_per_block;
  return chunk < remaining && chunk > over ? chunk - over : chunk;
}

}  // namespace

struct Scheduler::Building {
  uint64_t step_id;
  TimeNs now;
  StepPlan* plan;
  std::vector<ScheduledEntry>* entries;
  int32_t budget;
  int32_t room = 0;  // sequences that it may still admit
  int32_t lookups = kMaxLookupsPerStep;
  bool short_of_blocks = false;
  const RequestState* alone = nullptr;  // the only one whose running sequences may be scheduled
  bool single = true;                   // all chunks so far are of one token,
  std::vector<BlockHash> filled = {};   // and these are the blocks that they fill

  // Whether a next chunk of so many tokens would see, in the first `num_blocks` of `hashes`, what
  // this step writes, although all of its chunks are of one token.
  bool TooEarly(int32_t chunk, const std::vector<BlockHash>& hashes, int32_t num_blocks) const {
    if (!single || chunk > 1 || filled.empty()) return false;
    const auto end = hashes.begin() + num_blocks;
    return std::find_first_of(hashes.begin(), end, filled.begin(), filled.end()) != end;
  }
};

Scheduler::Scheduler(const ExecutorConfig& config, const KvGroups::Options& kv)
    : config_(config),
      suspect_losses_(config.max_restarts < 3 ? 1 : 2),
      kv_(kv),
      waiting_(config.priority_ageing_ms) {
  const int32_t num_slots = kSlotsPerSeq * config.max_num_seqs;
  for (int32_t slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  running_.reserve(num_slots);
  later_groups_.resize(kv_.num_groups() - 1);
}

void Scheduler::Enqueue(Sequence* sequence) { waiting_.Push(sequence); }

void Scheduler::Build(uint64_t step_id, TimeNs now, StepPlan* plan,
                      std::vector<ScheduledEntry>* entries) {
  plan->Clear();
  entries->clear();
  plan->step_id = step_id;
  plan->num_groups = static_cast<uint32_t>(kv_.num_groups());
  Building b{step_id, now, plan, entries, config_.max_num_tokens};
  if (!kv_.windows().empty()) {
    for (Sequence* s : running_) kv_.ReleaseUnseen(&s->kv);
  }
  b.room = config_.max_num_seqs -
           static_cast<int32_t>(std::count_if(running_.begin(), running_.end(), GoesOn));
  if (!has_suspects_ || !Probe(&b)) {
    if (!has_suspects_) MakePlaces(&b);  // they are admitted by Probe alone
    ScheduleRunning(&b, /*decodes=*/true);
    ScheduleRunning(&b, /*decodes=*/false);
    AdmitWaiting(&b, kPriorityClasses);
  }
  for (std::vector<int32_t>& ids : later_groups_) {
    plan->new_block_ids.insert(plan->new_block_ids.end(), ids.begin(), ids.end());
    ids.clear();
  }
  if (plan->empty()) return;
  plan->retired.swap(retired_);
  retired_.clear();
}

// Index-based: sequences come before the current one, and MakeRoom may remove those behind it.
void Scheduler::ScheduleRunning(Building* b, bool decodes) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (sequence->preempting || sequence->finished() || sequence->last_step == b->step_id) continue;
    if (b->alone != nullptr && sequence->request != b->alone) continue;
    const int32_t remaining = sequence->remaining();
    if (remaining <= 0 || (remaining == 1) != decodes) continue;
    // A prompt that has begun takes no budget from a better class.
    if (!decodes && b->alone == nullptr) AdmitWaiting(b, waiting_.RankOf(*sequence, b->now));
    if (b->budget <= 0) return;
    if (sequence->preempting) continue;
    const auto is_here = [&] { return i < running_.size() && running_[i] == sequence; };
    while (is_here() && !ScheduleChunk(sequence, b)) {
      b->short_of_blocks = true;
      if (!MakeRoom(sequence, b)) break;
    }
    // Another one may have taken its place.
    if (!is_here()) --i;
  }
}

// Blocks are short: the least important sequence gives way. True when blocks came free now.
bool Scheduler::MakeRoom(const Sequence* needy, Building* b) {
  for (const Sequence* s : running_) {
    if (s->preempting) return false;  // its blocks come back with its step in flight
  }
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence* victim = running_[i];
    if (victim->finished()) continue;
    if (victim == needy && i == 0) return false;  // finished ones are about to leave
    return Displace(victim, b) && victim != needy;
  }
  return false;
}

// True when the sequence could be preempted at once; else it will be when its steps have answered.
bool Scheduler::Displace(Sequence* victim, Building* b) {
  if (GoesOn(victim) && victim->last_step != b->step_id) ++b->room;
  if (victim->in_flight > 0) {
    victim->preempting = true;
    return false;
  }
  Preempt(victim);
  return true;
}

void Scheduler::Preempt(Sequence* sequence) {
  assert(sequence->in_flight == 0 && sequence->pending == 0);
  ++preemptions_;
  ++sequence->perf.preemptions;
  // Rows of the prompt's logits are kept only whole.
  if (!sequence->context_logits_done) sequence->output.event().context_logits.clear();
  LeaveRunning(sequence);
  sequence->preempting = false;
  sequence->scheduled = 0;
  sequence->state = Sequence::State::kWaiting;
  waiting_.Push(sequence);
}

void Scheduler::LeaveRunning(Sequence* sequence) {
  const auto it = std::find(running_.begin(), running_.end(), sequence);
  assert(it != running_.end());
  running_.erase(it);
  kv_.Close(&sequence->kv);
  retired_.push_back(static_cast<uint32_t>(sequence->slot));
  free_slots_.push_back(sequence->slot);
  sequence->slot = -1;
}

void Scheduler::Release(Sequence* sequence) {
  assert(sequence->in_flight == 0);
  if (sequence->slot >= 0) {
    LeaveRunning(sequence);
  } else if (waiting_.Contains(sequence)) {
    waiting_.Remove(sequence);
  }
}

void Scheduler::BuildTrial(uint64_t step_id, Sequence* sequence, StepPlan* plan,
                           std::vector<ScheduledEntry>* entries) {
  assert(running_.empty());
  plan->Clear();
  plan->step_id = step_id;
  plan->num_groups = static_cast<uint32_t>(kv_.num_groups());
  AddAdmitRecord(*sequence, config_.send_history, plan);
  plan->slot = {static_cast<uint32_t>(sequence->slot)};
  plan->num_tokens = {1};
  plan->first_position = {0};
  plan->num_new_blocks = {1};
  plan->flags = {kSeqSample};
  plan->token_ids = sequence->tokens;
  plan->new_block_ids.assign(plan->num_groups, 0);
  entries->assign(1, {sequence, 1, /*samples=*/true, /*context_logits=*/false});
  retired_.push_back(plan->slot.front());
}

// A step of one request with suspects, or none while other steps are in flight. False: there are no
// suspects any more, or none can run yet.
bool Scheduler::Probe(Building* b) {
  for (const Sequence* s : running_) {
    if (s->in_flight > 0) return true;
  }
  for (const Sequence* s : running_) {
    if (!IsSuspect(*s)) continue;
    b->alone = s->request;
    ScheduleRunning(b, /*decodes=*/true);
    ScheduleRunning(b, /*decodes=*/false);
    b->alone = nullptr;
    return !b->plan->empty();
  }
  Sequence* next = waiting_.LeastSuspected(suspect_losses_, b->now);
  has_suspects_ = next != nullptr;
  if (!has_suspects_ || Admit(next, b) != Lack::kNothing) return false;
  for (const auto& sibling : next->request->sequences) {
    if (b->budget <= 0) break;
    if (sibling->state != Sequence::State::kWaiting) continue;
    if (Admit(sibling.get(), b) != Lack::kNothing) break;
  }
  return true;
}

void Scheduler::Restart() {
  for (Sequence* sequence : running_) {
    kv_.Close(&sequence->kv);
    free_slots_.push_back(sequence->slot);
    sequence->slot = -1;
    sequence->in_flight = 0;
    sequence->pending = 0;
    sequence->scheduled = 0;
    sequence->preempting = false;
    has_suspects_ |= IsSuspect(*sequence);  // its siblings are, even if it has finished
    if (sequence->finished()) continue;
    sequence->state = Sequence::State::kWaiting;
    waiting_.Push(sequence);
  }
  running_.clear();
  retired_.clear();
  kv_.Forget();
}

// Under max_utilization the last of lower classes give way, as many as better ones wait for places
// in a step. Ranks only improve, so that two sequences cannot displace each other for ever.
void Scheduler::MakePlaces(Building* b) {
  if (config_.policy != SchedulerPolicy::kMaxUtilization) return;
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence* victim = running_[i];
    if (!GoesOn(victim)) continue;
    const int32_t rank = waiting_.RankOf(*victim, b->now);
    if (waiting_.CountBetter(rank, b->room + 1, b->now) <= b->room) return;
    Displace(victim, b);
  }
}

// The same for blocks: as many as hold what the waiting sequence lacks. True when some came free.
bool Scheduler::MakeRoomFor(const Sequence& waiting, Building* b) {
  if (config_.policy != SchedulerPolicy::kMaxUtilization) return false;
  const int64_t available = kv_.full() ? kv_.full()->num_available() : 0;
  const int64_t lacks = kv_.full() ? kv_.BlocksFor(waiting.num_tokens()) - available : 1;
  const int64_t wanted = std::max(lacks, int64_t{1});
  const int32_t rank = waiting_.RankOf(waiting, b->now);
  int64_t coming = 0;  // from those that leave anyway
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence* victim = running_[i];
    if (GoesOn(victim)) {
      if (coming >= wanted || waiting_.RankOf(*victim, b->now) <= rank) return false;
      if (Displace(victim, b)) return true;
    }
    coming += victim->kv.num_blocks;
  }
  return false;
}

// Those whose rank is below `rank`, as long as none that runs is short of blocks.
void Scheduler::AdmitWaiting(Building* b, int32_t rank) {
  while (!b->short_of_blocks && b->budget > 0 && b->lookups > 0) {
    Sequence* sequence = waiting_.Front(b->now);
    if (sequence == nullptr || IsSuspect(*sequence)) return;
    if (waiting_.RankOf(*sequence, b->now) >= rank) return;
    const Lack lack = Admit(sequence, b);
    if (lack == Lack::kNothing) continue;
    if (lack != Lack::kBlocks || !MakeRoomFor(*sequence, b)) return;
  }
}

Scheduler::Lack Scheduler::Admit(Sequence* s, Building* b) {
  if (b->room <= 0 || free_slots_.empty()) return Lack::kSlot;
  // The last token is always computed: its logits are what the first sample is drawn from.
  const bool reuse = !s->spec().return_context_logits || s->context_logits_done;
  const RequestSpec& spec = s->spec();
  if (reuse) {
    ExtendBlockHashes(spec.cache_salt, s->tokens.data(), s->num_tokens(), kv_.tokens_per_block(),
                      &s->kv.hashes);
  }
  const KvGroups::Match match = kv_.Lookup(spec.cache_salt, s->kv.hashes, s->tokens.data(),
                                           reuse ? s->num_tokens() - 1 : 0, b->step_id);
  if (reuse) b->lookups -= match.lookups;
  const int32_t cached = match.num_blocks * kv_.tokens_per_block() + match.partial_tokens();
  const int32_t todo = s->num_tokens() - cached;
  // Without chunking a prompt must fit whole; one that grew beyond the budget (resumed after
  // preemption) is still cut up, or it could never run again.
  const bool whole = !config_.enable_chunked_prefill && todo <= config_.max_num_tokens;
  if (whole && todo > b->budget) return Lack::kBudget;
  const int32_t chunk = ChunkOf(todo, cached, b->budget, kv_.tokens_per_block());
  if (b->TooEarly(chunk, s->kv.hashes, match.num_blocks)) return Lack::kTurn;
  if (!Fits(*s, match, cached + std::min(todo, b->budget))) return Lack::kBlocks;
  waiting_.Remove(s);
  s->rank = waiting_.RankOf(*s, b->now);
  OpenBlocks(s, match, reuse, b);
  s->scheduled = cached;
  s->slot = free_slots_.back();
  free_slots_.pop_back();
  --b->room;
  s->state = Sequence::State::kRunning;
  if (!s->admitted_before) {
    s->perf.first_scheduled_ns = b->now;
    s->cached_tokens = cached;
    s->perf.kv_reused_blocks = match.num_blocks;
  }
  running_.insert(std::upper_bound(running_.begin(), running_.end(), s, Before), s);
  AddAdmitRecord(*s, config_.send_history, b->plan);
  const bool scheduled = ScheduleChunk(s, b);
  s->admitted_before = true;
  assert(scheduled);
  (void)scheduled;
  return Lack::kNothing;
}

void Scheduler::OpenBlocks(Sequence* s, const KvGroups::Match& match, bool share, Building* b) {
  const int32_t partial = match.partial_tokens();
  const int32_t source = partial > 0 ? kv_.full()->block_of(match.full.partial.source) : -1;
  kv_.Open(s->spec().cache_salt, match, share, &s->kv);
  RetainReused(s, 0, b->now);
  if (source < 0) return;
  const int32_t cached = match.num_blocks * kv_.tokens_per_block() + partial;
  const bool grown = kv_.Advance(cached, cached, b->now, &s->kv);
  assert(grown);
  (void)grown;
  b->plan->copies.push_back({source, s->kv.full.blocks.back(), partial});
}

// While the next block is one that another sequence fills (maybe in this very step), take it
// instead of computing it again: prompts that arrive together share their prefix.
void Scheduler::ShareAhead(Sequence* s, int32_t* shared_tokens, Building* b) {
  const int32_t bs = kv_.tokens_per_block();
  while (s->scheduled % bs == 0 && s->kv.stored == s->kv.num_blocks &&
         s->scheduled / bs == s->kv.num_blocks && s->scheduled + bs < s->num_tokens() &&
         b->lookups > 0) {
    const int32_t next = s->kv.stored;
    if (next >= static_cast<int32_t>(s->kv.hashes.size())) return;
    const int32_t chunk = ChunkOf(s->remaining() - bs, s->scheduled + bs, b->budget, bs);
    if (b->TooEarly(chunk, s->kv.hashes, next + 1)) return;
    --b->lookups;
    if (!kv_.ExtendShared(&s->kv)) return;
    RetainReused(s, next, b->now);
    s->scheduled += bs;
    *shared_tokens += bs;
  }
}

// Schedules as much of the sequence as the budget allows; false when there are no blocks for it.
bool Scheduler::ScheduleChunk(Sequence* s, Building* b) {
  int32_t shared = 0;
  if (s->remaining() > 1) ShareAhead(s, &shared, b);
  if (s->num_generated() == 0) {
    s->cached_tokens += shared;
    s->perf.kv_reused_blocks += shared / kv_.tokens_per_block();
  }
  const int32_t chunk = ChunkOf(s->remaining(), s->scheduled, b->budget, kv_.tokens_per_block());
  if (!kv_.Advance(s->scheduled, s->scheduled + chunk, b->now, &s->kv)) return false;
  AppendToPlan(s, chunk, b);
  return true;
}

void Scheduler::AppendToPlan(Sequence* s, int32_t chunk, Building* b) {
  StepPlan& plan = *b->plan;
  const int32_t known = s->num_tokens();
  const bool samples = s->scheduled + chunk == known + s->pending;
  const bool context = s->spec().return_context_logits && !s->context_logits_done;
  plan.slot.push_back(static_cast<uint32_t>(s->slot));
  plan.num_tokens.push_back(static_cast<uint32_t>(chunk));
  plan.first_position.push_back(static_cast<uint32_t>(s->scheduled));
  plan.flags.push_back((samples ? kSeqSample : 0u) | (context ? kSeqContextLogits : 0u));
  const int32_t end = s->scheduled + chunk;
  const int32_t host_end = std::min(end, known);
  if (s->scheduled < host_end) {
    plan.token_ids.insert(plan.token_ids.end(), s->tokens.begin() + s->scheduled,
                          s->tokens.begin() + host_end);
  }
  if (end > known) plan.token_ids.push_back(kTokenFromSlot);
  AppendNewBlocks(s, &plan);
  b->entries->push_back({s, chunk, samples, context});
  b->budget -= chunk;
  s->scheduled = end;
  s->last_step = b->step_id;
  ++s->in_flight;
  s->pending += samples ? 1 : 0;
  if (context && end >= s->prompt_len) s->context_logits_done = true;
  b->single &= chunk == 1;
  const int32_t stored = s->kv.stored;
  StoreFullBlocks(s, b->now);
  if (!b->single) return;
  b->filled.insert(b->filled.end(), s->kv.hashes.begin() + stored,
                   s->kv.hashes.begin() + s->kv.stored);
}

void Scheduler::AppendNewBlocks(Sequence* s, StepPlan* plan) {
  SequenceKv& kv = s->kv;
  const int32_t count = kv.num_blocks - kv.announced;
  plan->num_new_blocks.push_back(static_cast<uint32_t>(count));
  if (count == 0) return;
  for (int32_t group = 0; group < kv_.num_groups(); ++group) {
    const std::vector<int32_t>& table = kv_.Table(group, kv);
    // Groups follow each other in the plan: all but the first wait until the plan is complete.
    std::vector<int32_t>& ids = group == 0 ? plan->new_block_ids : later_groups_[group - 1];
    ids.insert(ids.end(), table.begin() + kv.announced, table.end());
  }
  kv.announced = kv.num_blocks;
  s->perf.kv_alloc_total_blocks += count;
  s->perf.kv_alloc_new_blocks = s->perf.kv_alloc_total_blocks - s->perf.kv_reused_blocks;
}

// Blocks that others stored stay at least as long as this request asks for.
void Scheduler::RetainReused(Sequence* s, int32_t first, TimeNs now) {
  if (s->spec().retention.prompt.empty()) return;
  for (int32_t block = first; block < s->kv.stored; ++block) {
    kv_.Retain(block, RetainFor(*s, block * kv_.tokens_per_block(), now), &s->kv);
  }
}

void Scheduler::StoreFullBlocks(Sequence* s, TimeNs now) {
  const int32_t bs = kv_.tokens_per_block();
  const int32_t full = std::min(s->scheduled, s->num_tokens()) / bs;
  if (s->kv.stored >= full || !kv_.Stores(s->kv)) return;
  ExtendBlockHashes(s->spec().cache_salt, s->tokens.data(), full * bs, bs, &s->kv.hashes);
  while (s->kv.stored < full && kv_.Stores(s->kv)) {
    const int32_t first = s->kv.stored * bs;
    kv_.StoreNext(&s->tokens[first], RetainFor(*s, first, now), s->last_step, &s->kv);
  }
}

void Scheduler::OnTokens(Sequence* sequence, TimeNs now) {
  if (sequence->slot >= 0) StoreFullBlocks(sequence, now);
}

PrefixTree::Retain Scheduler::RetainFor(const Sequence& s, int32_t position, TimeNs now) const {
  const Retention& retention = s.spec().retention;
  const auto until = [now](int32_t ms) { return ms < 0 ? kNever : now + int64_t{1000000} * ms; };
  if (position >= s.prompt_len) {
    return {retention.decode_priority, until(retention.decode_duration_ms)};
  }
  for (const RetentionRange& range : retention.prompt) {
    if (position >= range.start && (range.end < 0 || position < range.end)) {
      return {range.priority, until(range.duration_ms)};
    }
  }
  return {};
}

std::string Scheduler::CheckIntegrity(const std::vector<const Sequence*>& leaving) const {
  std::vector<const SequenceKv*> active;
  for (const Sequence* s : running_) {
    if (s->slot < 0) return "a running sequence has no slot";
    if (!s->kv.active) return "a running sequence has no blocks";
    if (s->scheduled > s->kv.num_blocks * kv_.tokens_per_block()) {
      return "a sequence computes positions beyond its blocks";
    }
    if (s->finished() && s->in_flight == 0) return "a finished sequence was not released";
    active.push_back(&s->kv);
  }
  for (const Sequence* s : leaving) {
    if (std::find(running_.begin(), running_.end(), s) == running_.end() && s->kv.active) {
      return "a sequence outside the running list holds blocks";
    }
  }
  if (running_.size() + free_slots_.size() != size_t{kSlotsPerSeq} * config_.max_num_seqs) {
    return "running sequences + free slots != all slots";
  }
  if (!std::is_sorted(running_.begin(), running_.end(), Before)) return "running is not in order";
  return kv_.CheckIntegrity(active);
}

}  // namespace slipstream
