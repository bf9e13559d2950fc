// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "executor/block_hash.h"
#include "executor/kv_blocks.h"
#include "executor/kv_group.h"
#include "executor/prefix_tree.h"
#include "executor/step.h"

namespace slipstream {

// The blocks of one sequence in a windowed group, by their place in the sequence. Those below
// `first` were given back, or never taken: no later position sees them.
struct WindowSpan {
  std::vector<int32_t> blocks;  // kNoBlock below `first`
  int32_t first = 0;

  int32_t size() const { return static_cast<int32_t>(blocks.size()); }
  int32_t held() const { return size() - first; }
};

// The pool of a windowed group and what is cached in it. A flat table from hash to block: unlike
// the prefix tree it may have gaps, since a block is of use without those that the window has
// passed. Blocks that no sequence uses are evicted by retention priority, then least recently used.
// Owner: the executor's thread.
class WindowCache {
 public:
  using Retain = PrefixTree::Retain;

  WindowCache(const KvGroup& group, int32_t tokens_per_block);

  const KvGroup& group() const { return group_; }
  int32_t WindowBlocks() const { return group_.WindowBlocks(tokens_per_block_); }
  // The first block of a sequence that `position` sees.
  int32_t FirstBlock(int32_t position) const {
    return group_.FirstVisible(position) / tokens_per_block_;
  }

  // The cached block with this hash; kNoBlock if there is none.
  int32_t Find(const BlockHash& hash) const;

  // Starts a span that has `num_blocks` blocks behind it, of which it takes those that it still
  // sees. They must be cached.
  void Open(const std::vector<BlockHash>& hashes, int32_t num_blocks, WindowSpan* span);
  // Appends a cached block.
  void Extend(int32_t block, WindowSpan* span);
  // How many blocks ReleaseBelow would make available.
  int32_t Releasable(int32_t first_block, const WindowSpan& span) const;
  // Gives back the blocks below `first_block`; cached ones stay cached.
  void ReleaseBelow(int32_t first_block, WindowSpan* span);
  // Appends fresh blocks up to `num_blocks`, which must be available, evicting idle ones as needed.
  void Grow(int32_t num_blocks, TimeNs now, WindowSpan* span);
  // Offers the span's i-th block, now full of known tokens, for reuse.
  void Store(int32_t i, const BlockHash& hash, Retain retain, const WindowSpan& span);
  // Raises the retention of the span's i-th block.
  void Raise(int32_t i, Retain retain, const WindowSpan& span);
  void Close(WindowSpan* span);
  // After the worker lost its memory; no span may be open.
  void Forget();

  int32_t refs(int32_t block) const { return blocks_.refs(block); }
  // Blocks that could be allocated now, evicting if need be.
  int32_t num_available() const { return num_free() + num_cached(); }
  int32_t num_free() const { return blocks_.num_free(); }
  int32_t num_cached() const { return static_cast<int32_t>(idle_.size()); }
  int32_t num_total() const { return blocks_.total(); }
  int32_t num_used() const { return num_total() - num_available(); }
  uint64_t num_evicted() const { return num_evicted_; }

  // `spans`: every open one. Empty when all is well, else what is broken.
  std::string CheckIntegrity(const std::vector<const WindowSpan*>& spans) const;

 private:
  // What is known of a block's content.
  struct Entry {
    BlockHash hash;
    bool cached = false;
    int32_t priority = PrefixTree::kDefaultPriority;
    TimeNs expires = kNever;  // then the priority falls back to the default
    uint64_t last_use = 0;
  };
  using EvictKey = std::tuple<int32_t, uint64_t, int32_t>;  // priority, last use, block

  EvictKey KeyOf(int32_t block) const;
  void Acquire(int32_t block);
  void Release(int32_t block);
  void SetRetain(int32_t block, Retain retain);
  void Expire(TimeNs now);
  void Drop(int32_t block);
  std::string CheckCached() const;

  const KvGroup group_;
  const int32_t tokens_per_block_;
  KvBlocks blocks_;
  std::vector<Entry> entries_;  // by block
  std::unordered_map<BlockHash, int32_t, BlockHashHasher> by_hash_;
  std::set<EvictKey> idle_;                        // cached blocks that no sequence uses
  std::set<std::pair<TimeNs, int32_t>> expiries_;  // exactly the blocks whose priority expires
  uint64_t clock_ = 0;
  uint64_t num_evicted_ = 0;
};

}  // namespace slipstream
