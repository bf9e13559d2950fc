// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// Whether a sequence that waits has room in the KV pools.

#include <algorithm>

#include "executor/scheduler.h"

namespace slipstream {

// Full blocks that running sequences may still need.
int64_t Scheduler::ReservedBlocks() const {
  int64_t reserved = 0;
  for (const Sequence* s : running_) {
    if (!s->finished()) reserved += kv_.BlocksFor(s->limit) - s->kv.num_blocks;
  }
  return reserved;
}

bool Scheduler::Fits(const Sequence& sequence, const KvGroups::Match& match,
                     int32_t first_chunk_end) const {
  const bool no_evict = config_.policy == SchedulerPolicy::kGuaranteedNoEvict;
  // Room for everything known, not just the first chunk: half-admitted prompts would only take
  // blocks from each other.
  const int32_t known = std::max(sequence.num_tokens(), first_chunk_end);
  const int32_t wanted = kv_.BlocksFor(no_evict ? sequence.limit : std::min(known, sequence.limit));
  if (kv_.full()) {
    const int64_t left = kv_.full()->num_available() - match.full.idle_blocks;
    const int64_t reserved = no_evict ? ReservedBlocks() : 0;
    if (wanted - match.num_blocks + reserved > left) return false;
  }
  const int32_t chunk = first_chunk_end - match.num_blocks * kv_.tokens_per_block();
  for (size_t g = 0; g < kv_.windows().size(); ++g) {
    const WindowCache& window = kv_.windows()[g];
    if (no_evict) {
      if (!WindowsFit(g, sequence)) return false;
      continue;
    }
    const int32_t held = std::min(wanted, window.WindowBlocks() + kv_.BlocksFor(chunk));
    const KvGroups::WindowMatch& found = match.windows[g];
    if (held - found.blocks > window.num_available() - found.idle_blocks) return false;
  }
  return true;
}

// Whether a windowed group's pool suffices for all running sequences and one more, to their ends.
// Before a step each holds at most its window and the block it is in; the chunks of one step
// together add no more than the token budget. Blocks that sequences share count for each of them:
// each will need its own when its window moves on.
bool Scheduler::WindowsFit(size_t group, const Sequence& sequence) const {
  const WindowCache& window = kv_.windows()[group];
  const int64_t most = window.WindowBlocks() + 1;
  int64_t held = 0, growth = 0;
  const auto add = [&](const Sequence& s) {
    const int64_t limit = kv_.BlocksFor(s.limit);
    held += std::min(limit, most);
    growth += std::max<int64_t>(limit - most, 0);
  };
  add(sequence);
  for (const Sequence* s : running_) {
    if (s->finished()) {
      held += s->kv.windows[group].held();
    } else {
      add(*s);
    }
  }
  growth = std::min<int64_t>(growth, config_.max_num_tokens / kv_.tokens_per_block());
  return held + growth <= window.num_total();
}

}  // namespace slipstream
