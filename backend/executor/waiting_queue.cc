// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/waiting_queue.h"

#include <algorithm>
#include <cassert>
#include <tuple>

namespace slipstream {
namespace {

// No sequence of it has run, so that nothing was spent on it or sent to its client.
bool IsFresh(const RequestState& request) {
  return std::all_of(request.sequences.begin(), request.sequences.end(), [](const auto& s) {
    return s->state == Sequence::State::kWaiting && !s->admitted_before;
  });
}

}  // namespace

void WaitingQueue::Push(Sequence* sequence) {
  const bool added = classes_[sequence->spec().priority].emplace(sequence->order, sequence).second;
  assert(added);
  (void)added;
  ++size_;
  tokens_ += sequence->num_tokens();
  preempted_ += sequence->admitted_before ? 1 : 0;
  QueueLoad& fresh = fresh_[sequence->spec().priority];
  if (!sequence->admitted_before) fresh = fresh + QueueLoad{1, sequence->num_tokens()};
}

void WaitingQueue::Remove(Sequence* sequence) {
  const size_t removed = classes_[sequence->spec().priority].erase(sequence->order);
  assert(removed == 1);
  (void)removed;
  --size_;
  tokens_ -= sequence->num_tokens();
  preempted_ -= sequence->admitted_before ? 1 : 0;
  QueueLoad& fresh = fresh_[sequence->spec().priority];
  if (!sequence->admitted_before) fresh = fresh - QueueLoad{1, sequence->num_tokens()};
}

bool WaitingQueue::Contains(const Sequence* sequence) const {
  return classes_[sequence->spec().priority].count(sequence->order) > 0;
}

int32_t WaitingQueue::RankOf(const Sequence& sequence, TimeNs now) const {
  const int32_t own = sequence.spec().priority;
  if (ageing_ms_ <= 0) return own;
  const int64_t waited_ms = (now - sequence.request->arrival) / 1000000;
  return static_cast<int32_t>(std::max<int64_t>(0, own - waited_ms / ageing_ms_));
}

Sequence* WaitingQueue::Front(TimeNs now) const {
  Sequence* best = nullptr;
  int32_t best_rank = 0;
  for (int c = 0; c < kClasses; ++c) {
    if (classes_[c].empty()) continue;
    Sequence* head = classes_[c].begin()->second;
    const int32_t rank = RankOf(*head, now);
    if (best == nullptr || rank < best_rank || (rank == best_rank && head->order < best->order)) {
      best = head;
      best_rank = rank;
    }
  }
  return best;
}

int64_t WaitingQueue::CountBetter(int32_t rank, int64_t most, TimeNs now) const {
  int64_t count = 0;
  for (const auto& waiting : classes_) {
    for (auto it = waiting.begin(); it != waiting.end() && count < most; ++it) {
      if (RankOf(*it->second, now) >= rank) break;  // the rest of the class came later
      ++count;
    }
  }
  return count;
}

std::vector<RequestState*> WaitingQueue::ToDisplace(const ExecutorConfig& config, QueueLoad more,
                                                    int32_t priority, TimeNs now) const {
  std::vector<RequestState*> found;
  QueueLoad left = load();
  for (int c = kClasses - 1; c > priority; --c) {
    for (auto it = classes_[c].rbegin(); it != classes_[c].rend(); ++it) {
      const Sequence& s = *it->second;
      // Siblings follow each other: each request once, at its first sequence.
      if (s.index != 0 || RankOf(s, now) <= priority || !IsFresh(*s.request)) continue;
      found.push_back(s.request);
      const auto n = static_cast<int64_t>(s.request->sequences.size());
      left = left - QueueLoad{n, n * s.request->request.prompt_len()};
      if (CheckQueue(config, left, more).ok()) return found;
    }
  }
  return {};
}

Sequence* WaitingQueue::LeastSuspected(int32_t min_losses, TimeNs now) const {
  const auto key = [&](const Sequence* s) {
    return std::make_tuple(s->request->losses, RankOf(*s, now), s->order);
  };
  Sequence* best = nullptr;
  for (const auto& waiting : classes_) {
    for (const auto& [order, s] : waiting) {
      if (s->request->losses >= min_losses && (best == nullptr || key(s) < key(best))) best = s;
    }
  }
  return best;
}

}  // namespace slipstream
