// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace slipstream {

enum class KvKind : uint8_t {
  kFull,     // a position sees all before it
  kSliding,  // the last `window` positions, itself included
  kChunked,  // those from position / window * window on
};

// The layers of a model that see the same positions, and the pool of blocks that holds their KV.
// All groups have the same tokens per block.
struct KvGroup {
  KvKind kind = KvKind::kFull;
  int32_t window = 0;  // positions; 0 for kFull
  int32_t num_blocks = 0;
  int64_t bytes_per_block = 0;

  bool windowed() const { return kind != KvKind::kFull; }

  // The first position that `position` sees.
  int32_t FirstVisible(int32_t position) const {
    if (kind == KvKind::kSliding) return std::max(position - (window - 1), 0);
    if (kind == KvKind::kChunked) return position / window * window;
    return 0;
  }

  // The most blocks that a sequence holds between two chunks, wherever they meet: what the next
  // position sees before itself, or else the block that it goes on in.
  int32_t WindowBlocks(int32_t tokens_per_block) const {
    return static_cast<int32_t>((int64_t{window} + tokens_per_block - 3) / tokens_per_block + 1);
  }
};

// "full", "sliding" or "chunked".
inline const char* KvKindName(KvKind kind) {
  constexpr const char* kNames[] = {"full", "sliding", "chunked"};
  return kNames[static_cast<int>(kind)];
}

// False when no kind has that name.
inline bool KvKindFromName(const std::string& name, KvKind* kind) {
  for (const KvKind k : {KvKind::kFull, KvKind::kSliding, KvKind::kChunked}) {
    if (name != KvKindName(k)) continue;
    *kind = k;
    return true;
  }
  return false;
}

}  // namespace slipstream
