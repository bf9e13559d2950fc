// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/kv_blocks.h"

#include <cassert>

namespace slipstream {

KvBlocks::KvBlocks(int32_t num_blocks) : refs_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

int32_t KvBlocks::Allocate() {
  if (free_.empty()) return -1;
  const int32_t block = free_.back();
  free_.pop_back();
  assert(refs_[block] == 0);
  refs_[block] = 1;
  return block;
}

void KvBlocks::Free(int32_t block) {
  assert(refs_[block] == 0);
  free_.push_back(block);
}

}  // namespace slipstream
