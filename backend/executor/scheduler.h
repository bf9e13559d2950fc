// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "executor/engine_config.h"
#include "executor/kv_groups.h"
#include "executor/sequence.h"
#include "executor/step.h"
#include "executor/waiting_queue.h"

namespace slipstream {

// What a step in flight will answer for one sequence.
struct ScheduledEntry {
  Sequence* sequence = nullptr;
  int32_t num_tokens = 0;
  bool samples = false;
  bool context_logits = false;
};

// Decides each step's batch. Plain logic: no threads, no clocks of its own, no I/O.
//
// Every step: sequences that decode, then, class by class, those still in their prompt (in chunks
// that fit the token budget) and new ones while slots, budget and KV blocks last. Order among
// sequences is (rank, arrival); the first in that order is never preempted and so always
// progresses.
//
// After a second death of the worker in a row (the first, if there may be no third restart),
// whoever was in flight at them is a suspect, and its request computes alone until its next token:
// one that kills its worker is told from those beside it. The least suspected go first, so that it
// is not the first again after its next death.
class Scheduler {
 public:
  Scheduler(const ExecutorConfig& config, const KvGroups::Options& kv);

  void Enqueue(Sequence* sequence);

  // Fills the plan for `step_id` and what it will answer; an empty plan when nothing can run.
  void Build(uint64_t step_id, TimeNs now, StepPlan* plan, std::vector<ScheduledEntry>* entries);

  // A step of one token of a sequence that is nobody's, in slot 0, while nothing else runs and all
  // KV is free; the next plan retires it.
  void BuildTrial(uint64_t step_id, Sequence* sequence, StepPlan* plan,
                  std::vector<ScheduledEntry>* entries);

  // A step's answer for the sequence arrived and its new tokens were appended.
  void OnTokens(Sequence* sequence, TimeNs now);

  // The sequence is finished and no step in flight names it: its slot and blocks come back.
  void Release(Sequence* sequence);
  // Takes back its slot and blocks; it continues later from its known tokens. No step in flight may
  // name it.
  void Preempt(Sequence* sequence);
  // The worker lost everything: what was running waits again, nothing is cached any more.
  void Restart();

  // All that hold a slot, those among them that wait only for steps in flight to let it go.
  const std::vector<Sequence*>& running() const { return running_; }
  const WaitingQueue& waiting() const { return waiting_; }
  KvGroups& kv() { return kv_; }
  const KvGroups& kv() const { return kv_; }
  uint64_t preemptions() const { return preemptions_; }

  // `idle_spans`: finished sequences that still wait for a step in flight.
  std::string CheckIntegrity(const std::vector<const Sequence*>& leaving) const;

 private:
  struct Building;                                               // the step under construction
  enum class Lack { kNothing, kSlot, kBlocks, kBudget, kTurn };  // what keeps a sequence waiting

  void ScheduleRunning(Building* b, bool decodes);
  void AdmitWaiting(Building* b, int32_t rank);
  bool Probe(Building* b);
  bool IsSuspect(const Sequence& sequence) const {
    return sequence.request->losses >= suspect_losses_;
  }
  Lack Admit(Sequence* sequence, Building* b);
  bool ScheduleChunk(Sequence* sequence, Building* b);
  void ShareAhead(Sequence* sequence, int32_t* shared_tokens, Building* b);
  void AppendToPlan(Sequence* sequence, int32_t chunk, Building* b);
  void RetainReused(Sequence* sequence, int32_t first, TimeNs now);
  void StoreFullBlocks(Sequence* sequence, TimeNs now);
  void MakePlaces(Building* b);
  bool MakeRoom(const Sequence* needy, Building* b);
  bool MakeRoomFor(const Sequence& waiting, Building* b);
  bool Displace(Sequence* victim, Building* b);
  bool Fits(const Sequence& sequence, const KvGroups::Match& match, int32_t first_chunk_end) const;
  bool WindowsFit(size_t group, const Sequence& sequence) const;
  void OpenBlocks(Sequence* sequence, const KvGroups::Match& match, bool share, Building* b);
  void AppendNewBlocks(Sequence* sequence, StepPlan* plan);
  void LeaveRunning(Sequence* sequence);
  int64_t ReservedBlocks() const;
  PrefixTree::Retain RetainFor(const Sequence& sequence, int32_t position, TimeNs now) const;

  const ExecutorConfig config_;
  const int32_t suspect_losses_;
  KvGroups kv_;
  WaitingQueue waiting_;
  std::vector<Sequence*> running_;  // by (rank, order)
  std::vector<int32_t> free_slots_;
  std::vector<uint32_t> retired_;                   // slots given back since the last plan
  std::vector<std::vector<int32_t>> later_groups_;  // new block ids of the plan, from group 1 on
  uint64_t preemptions_ = 0;
  bool has_suspects_ = false;
};

}  // namespace slipstream
