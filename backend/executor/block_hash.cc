// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/block_hash.h"

#include <random>

namespace slipstream {
namespace {

// 64 x 64 -> 128 bit product, folded: one multiplication mixes every input bit.
inline uint64_t Fold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

struct HashKey {
  uint64_t a = RandomSeed() | 1;
  uint64_t b = RandomSeed() | 1;
};

const HashKey& Key() {
  static const HashKey key;
  return key;
}

}  // namespace

uint64_t RandomSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

uint64_t Mix64(uint64_t a, uint64_t b) {
  return Fold(a ^ 0x9e3779b97f4a7c15ull, b ^ 0xd6e8feb86659fd93ull) ^
         Fold(a + 0xa0761d6478bd642full, 0xe7037ed1a0b428dbull);
}

BlockHash RootHash(uint64_t cache_salt) {
  return {Mix64(cache_salt, Key().a), Mix64(cache_salt, Key().b)};
}

BlockHash ChainHash(const BlockHash& parent, const int32_t* tokens, int32_t n) {
  const HashKey& key = Key();
  uint64_t lo = parent.lo ^ key.a;
  uint64_t hi = parent.hi ^ key.b;
  for (int32_t i = 0; i < n; i += 2) {
    const uint64_t second = i + 1 < n ? static_cast<uint32_t>(tokens[i + 1]) : 0xffffffffull;
    const uint64_t word = (second << 32) | static_cast<uint32_t>(tokens[i]);
    lo = Fold(lo ^ word, key.a ^ 0xa0761d6478bd642full) + hi;
    hi = Fold(hi ^ word, key.b ^ 0xe7037ed1a0b428dbull) + word;
  }
  return {Mix64(lo, hi), Mix64(hi, lo ^ static_cast<uint64_t>(n))};
}

void ExtendBlockHashes(uint64_t cache_salt, const int32_t* tokens, int32_t n,
                       int32_t tokens_per_block, std::vector<BlockHash>* hashes) {
  const int32_t full = n / tokens_per_block;
  for (int32_t i = static_cast<int32_t>(hashes->size()); i < full; ++i) {
    const BlockHash parent = i == 0 ? RootHash(cache_salt) : hashes->back();
    hashes->push_back(
        ChainHash(parent, tokens + static_cast<int64_t>(i) * tokens_per_block, tokens_per_block));
  }
}

}  // namespace slipstream
