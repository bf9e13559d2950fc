// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/kv_cache.h"

#include <algorithm>
#include <cassert>

namespace slipstream {

KvCache::KvCache(const Options& options)
    : options_(options), blocks_(options.num_blocks), tree_(&blocks_, options.tokens_per_block) {}

KvCache::Match KvCache::Lookup(uint64_t salt, const std::vector<BlockHash>& hashes,
                               const int32_t* tokens, int32_t max_tokens, uint64_t step) {
  Match match;
  if (!options_.reuse || max_tokens <= 0) return match;
  const int32_t full =
      std::min(static_cast<int32_t>(hashes.size()), max_tokens / options_.tokens_per_block);
  for (int32_t i = 0; i < full; ++i) {
    const PrefixTree::NodeId node = tree_.Find(hashes[i]);
    if (node == PrefixTree::kNone) break;
    match.nodes.push_back(node);
    if (blocks_.refs(tree_.block(node)) == 0) ++match.idle_blocks;
  }
  const int32_t done = static_cast<int32_t>(match.nodes.size()) * options_.tokens_per_block;
  if (!options_.partial_reuse || done >= max_tokens) return match;
  const PrefixTree::NodeId root = tree_.PinRoot(salt);
  const PrefixTree::NodeId parent = match.nodes.empty() ? root : match.nodes.back();
  match.partial.source = tree_.LongestPartial(parent, tokens + done, max_tokens - done, step,
                                              &match.partial.num_tokens);
  tree_.UnpinRoot(root);
  return match;
}

void KvCache::Truncate(int32_t num_blocks, Match* match) const {
  match->partial = {};
  while (static_cast<int32_t>(match->nodes.size()) > num_blocks) {
    if (blocks_.refs(tree_.block(match->nodes.back())) == 0) --match->idle_blocks;
    match->nodes.pop_back();
  }
}

void KvCache::Open(uint64_t salt, const Match& match, KvSpan* span) {
  assert(!span->active() && span->blocks.empty());
  span->root = tree_.PinRoot(salt);
  span->detached = !options_.reuse;
  for (const PrefixTree::NodeId node : match.nodes) {
    tree_.Acquire(node);
    span->nodes.push_back(node);
    span->blocks.push_back(tree_.block(node));
  }
}

bool KvCache::ExtendShared(const BlockHash& hash, KvSpan* span) {
  if (span->detached || span->nodes.size() != span->blocks.size()) return false;
  const PrefixTree::NodeId node = tree_.Find(hash);
  if (node == PrefixTree::kNone) return false;
  tree_.Acquire(node);
  span->nodes.push_back(node);
  span->blocks.push_back(tree_.block(node));
  return true;
}

bool KvCache::Grow(int32_t num_blocks, TimeNs now, KvSpan* span) {
  const int32_t wanted = num_blocks - static_cast<int32_t>(span->blocks.size());
  if (wanted > num_available()) return false;
  for (int32_t i = 0; i < wanted; ++i) {
    if (blocks_.num_free() == 0) {
      const bool evicted = tree_.Evict(now);
      assert(evicted);
      (void)evicted;
    }
    span->blocks.push_back(blocks_.Allocate());
  }
  return true;
}

void KvCache::Store(const BlockHash& hash, const int32_t* block_tokens, PrefixTree::Retain retain,
                    uint64_t step, KvSpan* span) {
  if (span->detached) return;
  const size_t i = span->nodes.size();
  if (tree_.Find(hash) != PrefixTree::kNone) {
    span->detached = true;
    return;
  }
  const PrefixTree::NodeId parent = i == 0 ? span->root : span->nodes.back();
  span->nodes.push_back(tree_.Insert(parent, hash, block_tokens, span->blocks[i], retain, step));
}

void KvCache::Close(KvSpan* span) {
  if (!span->active()) return;
  // Deepest first: a child must never be in use when its parent is not.
  for (size_t i = span->blocks.size(); i-- > span->nodes.size();) {
    if (blocks_.Unref(span->blocks[i])) blocks_.Free(span->blocks[i]);
  }
  for (size_t i = span->nodes.size(); i-- > 0;) tree_.Release(span->nodes[i]);
  tree_.UnpinRoot(span->root);
  span->root = PrefixTree::kNone;
  span->blocks.clear();
  span->nodes.clear();
  span->detached = false;
}

std::string KvCache::CheckIntegrity(const std::vector<const KvSpan*>& spans) const {
  std::vector<int32_t> expected(blocks_.total(), 0);
  for (const KvSpan* span : spans) {
    if (span->nodes.size() > span->blocks.size()) return "a span has more nodes than blocks";
    for (size_t i = 0; i < span->blocks.size(); ++i) {
      const int32_t block = span->blocks[i];
      if (block < 0 || block >= blocks_.total()) return "a span names a block outside the pool";
      ++expected[block];
      if (i < span->nodes.size() && tree_.block(span->nodes[i]) != block) {
        return "a span and the tree disagree on block " + std::to_string(block);
      }
    }
  }
  for (const KvSpan* span : spans) {
    for (size_t i = span->nodes.size(); i < span->blocks.size(); ++i) {
      if (expected[span->blocks[i]] != 1) {
        return "writable block " + std::to_string(span->blocks[i]) + " has several holders";
      }
    }
  }
  int32_t used = 0;
  for (int32_t block = 0; block < blocks_.total(); ++block) {
    if (expected[block] != blocks_.refs(block)) {
      return "block " + std::to_string(block) + " has " + std::to_string(blocks_.refs(block)) +
             " references but " + std::to_string(expected[block]) + " holders";
    }
    used += expected[block] > 0 ? 1 : 0;
  }
  for (const int32_t block : blocks_.free_list()) {
    if (blocks_.refs(block) != 0) return "block " + std::to_string(block) + " is free and in use";
  }
  if (used + num_cached() + num_free() != num_total()) {
    return "used " + std::to_string(used) + " + cached " + std::to_string(num_cached()) +
           " + free " + std::to_string(num_free()) + " != total " + std::to_string(num_total());
  }
  return tree_.CheckIntegrity();
}

}  // namespace slipstream
