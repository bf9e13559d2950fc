// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "executor/admission.h"
#include "executor/sequence.h"

namespace slipstream {

// Sequences that wait to run: first come, first served within a priority class; class 0 first; a
// class that has waited long is served as if it were higher, so that none starves. Preempted
// sequences keep their arrival order, and so are among the first to continue.
class WaitingQueue {
 public:
  static constexpr int kClasses = kPriorityClasses;

  explicit WaitingQueue(int32_t ageing_ms) : ageing_ms_(ageing_ms) {}

  void Push(Sequence* sequence);
  void Remove(Sequence* sequence);
  // The class a sequence counts as, having waited since its arrival; never rises again.
  int32_t RankOf(const Sequence& sequence, TimeNs now) const;
  // The one to admit next; null when empty.
  Sequence* Front(TimeNs now) const;
  // How many rank below `rank`, counted up to `most`.
  int64_t CountBetter(int32_t rank, int64_t most, TimeNs now) const;
  // Of those whose requests have at least so many losses, one of the request with the fewest, in
  // their order; null: none.
  Sequence* LeastSuspected(int32_t min_losses, TimeNs now) const;

  // Requests that have not begun and whose rank is worse than `priority`, worst class first, the
  // youngest of it first, until `more` fits within the bounds once they are gone. Empty if it does
  // not fit even so.
  std::vector<RequestState*> ToDisplace(const ExecutorConfig& config, QueueLoad more,
                                        int32_t priority, TimeNs now) const;

  QueueLoad load() const { return {size_, tokens_}; }
  // Of it, by class, the sequences that have never run.
  const ClassLoads& fresh() const { return fresh_; }
  int32_t size() const { return size_; }
  int32_t preempted() const { return preempted_; }
  int64_t tokens() const { return tokens_; }
  bool Contains(const Sequence* sequence) const;

 private:
  const int32_t ageing_ms_;
  std::array<std::map<uint64_t, Sequence*>, kClasses> classes_;  // by arrival order
  int32_t size_ = 0;
  int32_t preempted_ = 0;
  int64_t tokens_ = 0;
  ClassLoads fresh_{};
};

}  // namespace slipstream
