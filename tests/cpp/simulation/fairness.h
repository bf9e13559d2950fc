// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

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
// Progress. A sequence's reach is the furthest position ever scheduled of it. The first running one
// in (rank, arrival) order is never preempted and is named by every step that has blocks for it, so
// it makes up for what it lost in at most M steps, where M is the most positions that a sequence
// can have; each may wait pipeline_depth steps for the blocks of those that give way to it. So some
// reach grows at least every K = (M + 2) (pipeline_depth + 1) steps. With guaranteed_no_evict and
// without deaths nothing is computed twice: K = 1.
//
// Waiting. The queue is served in (rank, arrival) order, and nobody overtakes its front. With
// ageing A a request of class p has rank 0 from p A after its arrival; from then on nobody that
// came later goes before it. So only these are ever admitted before it: those that were live when
// it began to wait, and those of a better class that came within p A. Let W be the
// positions of all of these. Every step computes some of them, and each once, but for what deaths
// and preemption undo. So it is admitted after at most W steps and one for each position that is
// computed again meanwhile; and at most K W (1 + deaths) steps, since so many let W positions grow.
// With guaranteed_no_evict and without deaths that is W. It holds for every wait, be it the first
// or one after preemption. A death begins every wait anew: whoever ran may be suspected of it, and
// suspects go first, alone. Before them goes one that is not suspected, even if it came later.
class Fairness {
 public:
  explicit Fairness(const Workload& workload);

  void OnAccepted(RequestId id, const RequestSpec& spec, TimeNs now);
  // Fills the sequences that the plan names.
  std::string OnPlan(const StepPlan& plan, std::vector<SequenceKey>* named);
  void OnDeath();
  // Of a sequence, whatever the reason.
  std::string OnEnded(SequenceKey key);

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
    uint64_t steps = 0;     // built when it began to wait
    uint64_t deaths = 0;    // likewise
    uint64_t born = 0;      // deaths when it came
    int64_t again = 0;      // likewise
    int32_t reach = 0;
    bool waits = false;
  };

  void StartWait(Track* track) const;
  std::string CheckWait(SequenceKey key, Track* track);

  const bool preempts_;
  const int64_t ageing_ns_;
  const int64_t stall_bound_;
  std::map<SequenceKey, Track> tracks_;      // the live sequences
  std::map<uint64_t, SequenceKey> by_seed_;  // likewise; a plan knows them by their seeds
  std::vector<SequenceKey> by_slot_;
  int64_t live_positions_ = 0;
  uint64_t steps_ = 0;
  uint64_t deaths_ = 0;
  bool restarted_ = false;  // no step since the last death
  int64_t again_ = 0;       // positions that were computed before
  int64_t stall_ = 0;
  int64_t longest_wait_ = 0;
  int64_t bound_of_longest_ = 0;
  double worst_share_ = 0;
  int64_t longest_stall_ = 0;
  uint64_t scheduled_ = 0;
};

}  // namespace slipstream::simulation
