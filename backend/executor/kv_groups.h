// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "executor/engine_config.h"
#include "executor/kv_cache.h"
#include "executor/status.h"
#include "executor/step.h"
#include "executor/window_cache.h"

namespace slipstream {

// The blocks of one sequence in every group.
struct SequenceKv {
  bool active = false;
  bool unshared = false;      // neither takes cached blocks nor offers its own
  int32_t num_blocks = 0;     // the length of its block tables
  int32_t announced = 0;      // of them, those that the worker's tables have
  int32_t stored = 0;         // of them, those taken from the cache or offered to it
  int32_t next_position = 0;  // where its next chunk starts, unless it skips what others computed
  std::vector<BlockHash> hashes;  // of the sequence's full blocks, as far as known
  KvSpan full;
  std::vector<WindowSpan> windows;
};

// All KV groups of a model: what a sequence needs of them together. A cached prefix can be used
// where the full group has all of it and every windowed group what the position after it sees.
// Partial-block reuse works only in models that have one full group. Owner: the executor's thread.
class KvGroups {
 public:
  struct Options {
    std::vector<KvGroup> groups;
    int32_t tokens_per_block = 32;
    bool reuse = true;
    bool partial_reuse = true;
  };
  struct WindowMatch {
    int32_t blocks = 0;
    int32_t idle_blocks = 0;  // of them, those that no sequence uses now
  };
  struct Match {
    int32_t num_blocks = 0;
    int32_t lookups = 0;  // what finding it cost
    KvCache::Match full;
    std::vector<WindowMatch> windows;

    int32_t partial_tokens() const { return full.partial.num_tokens; }
  };

  explicit KvGroups(const Options& options);

  // The longest prefix of tokens[0, max_tokens) that can be used; see KvCache::Lookup.
  Match Lookup(uint64_t salt, const std::vector<BlockHash>& hashes, const int32_t* tokens,
               int32_t max_tokens, uint64_t step);
  // Starts with what Lookup found.
  void Open(uint64_t salt, const Match& match, bool share, SequenceKv* kv);
  // Appends the next full block, if another sequence computed it in every group.
  bool ExtendShared(SequenceKv* kv);
  // Raises the retention of the i-th block.
  void Retain(int32_t i, PrefixTree::Retain retain, SequenceKv* kv);
  // Prepares a chunk of positions [first, end): gives up what `first` does not see and grows the
  // rest; false and unchanged if there are not enough blocks.
  bool Advance(int32_t first, int32_t end, TimeNs now, SequenceKv* kv);
  // Gives up what the sequence's next chunk will not see, now that a later step than its last is
  // being built.
  void ReleaseUnseen(SequenceKv* kv);
  // Full blocks of known tokens are worth offering.
  bool Stores(const SequenceKv& kv) const {
    return !kv.unshared && !(windows_.empty() && kv.full.detached);
  }
  // Offers the next block, full of known tokens, for reuse.
  void StoreNext(const int32_t* block_tokens, PrefixTree::Retain retain, uint64_t step,
                 SequenceKv* kv);
  void Close(SequenceKv* kv);
  // After the worker lost its memory; no sequence may be active.
  void Forget();

  int32_t num_groups() const { return (full_ ? 1 : 0) + static_cast<int32_t>(windows_.size()); }
  // The sequence's block table in a group, in the worker's order of groups.
  const std::vector<int32_t>& Table(int32_t group, const SequenceKv& kv) const {
    if (full_ && group == 0) return kv.full.blocks;
    return kv.windows[group - (full_ ? 1 : 0)].blocks;
  }
  int32_t tokens_per_block() const { return options_.tokens_per_block; }
  int32_t BlocksFor(int32_t tokens) const {
    return (tokens + options_.tokens_per_block - 1) / options_.tokens_per_block;
  }
  std::optional<KvCache>& full() { return full_; }
  const std::optional<KvCache>& full() const { return full_; }
  const std::vector<WindowCache>& windows() const { return windows_; }

  // The group that stands for the cache as a whole: the full one, or else the first.
  int32_t num_total() const { return full_ ? full_->num_total() : windows_[0].num_total(); }
  int32_t num_used() const { return full_ ? full_->num_used() : windows_[0].num_used(); }
  int32_t num_cached() const { return full_ ? full_->num_cached() : windows_[0].num_cached(); }
  int32_t num_free() const { return full_ ? full_->num_free() : windows_[0].num_free(); }
  uint64_t num_evicted() const { return full_ ? full_->num_evicted() : windows_[0].num_evicted(); }
  // Over all groups.
  int64_t total_bytes() const;
  int64_t used_bytes() const;

  // `active`: every one that is. Empty when all is well, else what is broken.
  std::string CheckIntegrity(const std::vector<const SequenceKv*>& active) const;

 private:
  int32_t LongestVisible(const std::vector<BlockHash>& hashes, Match* match) const;

  const Options options_;
  std::optional<KvCache> full_;
  std::vector<WindowCache> windows_;
};

// Whether an Engine can serve with these groups: each pool holds at least one sequence, in steps of
// up to max_num_tokens. The message names the group and the numbers.
Status CheckKvGroups(const WorkerInfo& worker, const ExecutorConfig& config);
// Whether a restarted worker's groups can take the place of those before.
bool CanReplace(const std::vector<KvGroup>& before, const std::vector<KvGroup>& now);

}  // namespace slipstream
