// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace slipstream {

// Identity of a block of KV: everything that the KV depends on is chained into it (all earlier
// tokens, the tokens of the block, the cache salt). 128 bits under a key drawn at process start, so
// that a client cannot construct two prompts that share KV by collision.
struct BlockHash {
  uint64_t lo = 0;
  uint64_t hi = 0;
  bool operator==(const BlockHash& o) const { return lo == o.lo && hi == o.hi; }
  bool operator!=(const BlockHash& o) const { return !(*this == o); }
};

struct BlockHashHasher {
  size_t operator()(const BlockHash& h) const { return static_cast<size_t>(h.lo); }
};

BlockHash RootHash(uint64_t cache_salt);
BlockHash ChainHash(const BlockHash& parent, const int32_t* tokens, int32_t n);

// Appends the hashes of the full blocks of tokens[0, n) that `hashes` does not hold yet.
void ExtendBlockHashes(uint64_t cache_salt, const int32_t* tokens, int32_t n,
                       int32_t tokens_per_block, std::vector<BlockHash>* hashes);

// A well-mixed 64-bit value of two others; also derives the seeds of a request's sequences.
uint64_t Mix64(uint64_t a, uint64_t b);

// Fresh entropy from the operating system.
uint64_t RandomSeed();

}  // namespace slipstream
