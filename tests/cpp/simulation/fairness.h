// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "executor/step.h"
#include "simulation/ledger.h"
#include "simulation/workload.h"

namespace slipstream::simulation {

// Holds the scheduler to bounds on progress and on waiting, counted in steps.
//
// Progress. A sequence's reach is the furthest position scheduled of it since the worker's last
// death, which undoes everything. The first running one in (rank, arrival) order is never preempted
// and is named by every step that has blocks for it, so it makes up for what it lost in at most M
// steps, where M is the most positions that a sequence can have; each may wait pipeline_depth steps
// for the blocks of those that give way to it. So some reach grows at least every
// K = (M + 2) (pipeline_depth + 1) steps. With guaranteed_no_evict nothing is computed twice, and
// K is 1.
//
// Waiting. The queue is served in (rank, arrival) order, and nobody overtakes its front. With
// ageing A a request of class p has rank 0 from p A after its arrival; from then on nobody that
// came later goes before it. So only these are ever admitted before it: those that were live when
// it began to wait, and those of a better class that came within p A. Let W be the positions of all
// of these. Every step computes some of them, and each once, but for what preemption undoes. So it
// is admitted after at most W steps and one for each position that is computed again meanwhile; and
// at most K W steps, since so many let W positions grow. With guaranteed_no_evict that is W. It
// holds for every wait, be it the first or one after preemption. A death begins every wait anew:
// whoever ran may be suspected of it, and suspects go first, alone.
//
// Time. While something waits, steps are in flight or the worker is being restarted. So a wait of S
// steps lasts no longer than S + pipeline_depth + 2 of the longest steps, the trial of a new worker
// among them, but for restarts and for what the watchdog needs to find out that the worker hangs.
class Fairness {
 public:
  explicit Fairness(const Workload& workload);

  void OnAccepted(RequestId id, const RequestSpec& spec, TimeNs now);
  // Fills the sequences that the plan names.
  void OnTrial(const StepPlan& plan);
  std::string OnPlan(const StepPlan& plan, TimeNs now, std::vector<SequenceKey>* named);
  void OnDeath(TimeNs now);
  void OnServing(TimeNs now);  // again
  // Of a sequence, whatever the reason.
  std::string OnEnded(SequenceKey key, TimeNs now);

  // The longest waits of a priority class.
  struct Waits {
    uint64_t count = 0;
    int64_t steps = 0;
    TimeNs time = 0;
  };
  const std::array<Waits, 10>& waits() const { return waits_; }

  int64_t longest_wait() const { return longest_wait_; }          // steps
  int64_t bound_of_longest() const { return bound_of_longest_; }  // of the same sequence
  double worst_share() const { return worst_share_; }       // of its bound that a sequence waited
  int64_t longest_stall() const { return longest_stall_; }  // steps without progress
  int64_t stall_bound() const { return stall_bound_; }
  uint64_t scheduled() const { return scheduled_; }

 private:
  struct Track {
    uint64_t seed = 0;
    int32_t priority = 0;
    int64_t positions = 0;  // that it ever needs
    TimeNs rank_0_at = 0;   // nobody who comes later goes before it; kNever without ageing
    int64_t before = 0;     // W
    TimeNs since = 0;       // when it began to wait
    TimeNs down = 0;        // without a worker until then
    uint64_t steps = 0;     // built when it began to wait
    int64_t again = 0;      // likewise
    int32_t reach = 0;
    bool waits = false;
  };

  void StartWait(TimeNs now, Track* track) const;
  std::string CheckWait(SequenceKey key, TimeNs now, Track* track);
  std::string CheckTime(SequenceKey key, TimeNs now, int64_t steps, const Track& track) const;
  TimeNs Down(TimeNs now) const { return down_ + (down_since_ == kNever ? 0 : now - down_since_); }

  const bool preempts_;
  const int64_t ageing_ns_;
  const int32_t depth_;
  const TimeNs max_step_;
  const TimeNs watchdog_;  // until a worker that hangs is found out; 0: none hangs
  const int64_t stall_bound_;
  std::map<SequenceKey, Track> tracks_;      // the live sequences
  std::map<uint64_t, SequenceKey> by_seed_;  // likewise; a plan knows them by their seeds
  std::vector<SequenceKey> by_slot_;
  int64_t live_positions_ = 0;
  uint64_t steps_ = 0;
  int64_t again_ = 0;  // positions that were computed before
  int64_t stall_ = 0;
  int64_t longest_wait_ = 0;
  int64_t bound_of_longest_ = 0;
  double worst_share_ = 0;
  int64_t longest_stall_ = 0;
  uint64_t scheduled_ = 0;
  TimeNs down_ = 0;  // in all, without a worker
  TimeNs down_since_ = kNever;
  std::array<Waits, 10> waits_;
};

}  // namespace slipstream::simulation
