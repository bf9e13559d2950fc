// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/fairness.h"

#include <algorithm>

#include "executor/block_hash.h"

namespace slipstream::simulation {
namespace {

int64_t StallBound(const Workload& w) {
  int64_t most = w.worker.max_seq_len;
  const KvGroup& first = w.worker.kv_groups.front();
  if (!first.windowed()) {
    most = std::min(most, int64_t{first.num_blocks} * w.worker.tokens_per_block);
  }
  return (most + 2) * (w.config.pipeline_depth + 1);
}

}  // namespace

Fairness::Fairness(const Workload& workload)
    : preempts_(workload.config.policy == SchedulerPolicy::kMaxUtilization),
      ageing_ns_(int64_t{1000000} * workload.config.priority_ageing_ms),
      depth_(workload.config.pipeline_depth),
      max_step_(workload.max_step),
      watchdog_(int64_t{1000000} * workload.config.watchdog_ms),
      stall_bound_(StallBound(workload)),
      by_slot_(kSlotsPerSeq * workload.config.max_num_seqs) {}

void Fairness::OnAccepted(RequestId id, const RequestSpec& spec, TimeNs now) {
  Track track;
  track.priority = spec.priority;
  track.positions = static_cast<int64_t>(spec.prompt.size()) + spec.max_new_tokens - 1;
  track.rank_0_at = ageing_ns_ > 0 ? now + spec.priority * ageing_ns_ : kNever;
  const int64_t all = spec.num_return_sequences * track.positions;
  for (auto& [key, other] : tracks_) {
    if (other.waits && spec.priority < other.priority && now < other.rank_0_at) other.before += all;
  }
  for (int32_t i = 0; i < spec.num_return_sequences; ++i) {
    StartWait(now, &track);
    live_positions_ += track.positions;
    track.seed = Mix64(spec.sampling.seed, static_cast<uint64_t>(i));
    tracks_.emplace(SequenceKey{id, i}, track);
    by_seed_.emplace(track.seed, SequenceKey{id, i});
  }
}

void Fairness::StartWait(TimeNs now, Track* track) const {
  track->waits = true;
  track->since = now;
  track->down = Down(now);
  track->before = live_positions_;
  track->steps = steps_;
  track->again = again_;
}

std::string Fairness::OnPlan(const StepPlan& plan, TimeNs now, std::vector<SequenceKey>* named) {
  for (const uint32_t slot : plan.retired) {
    const auto preempted = tracks_.find(by_slot_[slot]);
    if (preempted != tracks_.end()) StartWait(now, &preempted->second);
  }
  for (const AdmitRecord& record : plan.admitted) {
    const auto it = by_seed_.find(record.seed);
    if (it == by_seed_.end()) return "the plan admits a sequence that is not live";
    by_slot_[record.slot] = it->second;
    Track& track = tracks_.at(it->second);
    if (!track.waits) return "the plan admits a sequence that runs";
    track.waits = false;
    const std::string wrong = CheckWait(it->second, now, &track);
    if (!wrong.empty()) return wrong;
  }
  ++stall_;
  for (size_t i = 0; i < plan.num_seqs(); ++i) {
    named->push_back(by_slot_[plan.slot[i]]);
    const auto it = tracks_.find(named->back());
    if (it == tracks_.end()) return "the plan schedules a sequence that is not live";
    int32_t* reach = &it->second.reach;
    const auto first = static_cast<int32_t>(plan.first_position[i]);
    const auto end = first + static_cast<int32_t>(plan.num_tokens[i]);
    again_ += std::max(0, std::min(end, *reach) - first);
    if (end <= *reach) continue;
    *reach = end;
    stall_ = 0;
  }
  ++steps_;
  scheduled_ += plan.num_seqs();
  longest_stall_ = std::max(longest_stall_, stall_);
  const int64_t bound = preempts_ ? stall_bound_ : 0;
  if (stall_ <= bound) return "";
  return std::to_string(stall_) + " steps without progress, the bound is " + std::to_string(bound);
}

void Fairness::OnTrial(const StepPlan& plan) {
  for (const uint32_t slot : plan.slot) by_slot_[slot] = {};  // as no request is named
}

void Fairness::OnDeath(TimeNs now) {
  stall_ = 0;
  if (down_since_ == kNever) down_since_ = now;
  for (auto& [key, track] : tracks_) {
    track.reach = 0;
    StartWait(now, &track);
  }
}

void Fairness::OnServing(TimeNs now) {
  down_ = Down(now);
  down_since_ = kNever;
}

std::string Fairness::CheckWait(SequenceKey key, TimeNs now, Track* track) {
  const auto waited = static_cast<int64_t>(steps_ - track->steps);
  const int64_t counted = track->before + again_ - track->again;
  const int64_t bound = std::min(counted, track->before * stall_bound_);
  if (waited > longest_wait_) {
    longest_wait_ = waited;
    bound_of_longest_ = bound;
  }
  if (bound > 0) {
    worst_share_ = std::max(worst_share_, static_cast<double>(waited) / static_cast<double>(bound));
  }
  Waits& waits = waits_[track->priority];
  ++waits.count;
  waits.steps = std::max(waits.steps, waited);
  waits.time = std::max(waits.time, now - track->since);
  if (waited <= bound) return CheckTime(key, now, waited, *track);
  return "request " + std::to_string(key.first) + " waited " + std::to_string(waited) +
         " steps, the bound is " + std::to_string(bound);
}

std::string Fairness::CheckTime(SequenceKey key, TimeNs now, int64_t steps,
                                const Track& track) const {
  constexpr TimeNs kBetween = 16;  // moments and turns of the loop, per step
  const TimeNs time = now - track.since - (Down(now) - track.down);
  // Once a worker serves its trial goes before.
  const TimeNs bound = (steps + depth_ + 2) * (max_step_ + kBetween) + watchdog_;
  if (time <= bound) return "";
  return "request " + std::to_string(key.first) + " waited " + std::to_string(time) + " ns and " +
         std::to_string(steps) + " steps, the bound is " + std::to_string(bound) + " ns";
}

std::string Fairness::OnEnded(SequenceKey key, TimeNs now) {
  const auto it = tracks_.find(key);
  Track& track = it->second;
  const std::string wrong = track.waits ? CheckWait(key, now, &track) : "";
  live_positions_ -= track.positions;
  by_seed_.erase(track.seed);
  tracks_.erase(it);
  return wrong;
}

}  // namespace slipstream::simulation
