// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace slipstream {

// Who holds each block of the KV pool. A block is free (on the free list), used (referenced by live
// sequences) or idle (referenced by none, but not freed: the prefix tree keeps it for reuse).
// Owner: the executor's thread.
class KvBlocks {
 public:
  explicit KvBlocks(int32_t num_blocks);

  // Takes a free block with one reference; -1 when none is free.
  int32_t Allocate();
  void Ref(int32_t block) { ++refs_[block]; }
  // Drops a reference; true when it was the last: the block is idle until Free or Ref.
  bool Unref(int32_t block) { return --refs_[block] == 0; }
  // Returns an idle block to the free list.
  void Free(int32_t block);

  int32_t refs(int32_t block) const { return refs_[block]; }
  int32_t total() const { return static_cast<int32_t>(refs_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  const std::vector<int32_t>& free_list() const { return free_; }

 private:
  std::vector<int32_t> refs_;
  std::vector<int32_t> free_;  // used as a stack: recently freed blocks are warm
};

}  // namespace slipstream
