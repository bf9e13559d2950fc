// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/window_cache.h"

#include <algorithm>
#include <cassert>

namespace slipstream {

WindowCache::WindowCache(const KvGroup& group, int32_t tokens_per_block)
    : group_(group), tokens_per_block_(tokens_per_block), blocks_(group.num_blocks) {
  const auto total = static_cast<size_t>(group.num_blocks);
  entries_.resize(total);
  by_hash_.reserve(total * 2);  // growing while it serves would stretch one step
}

int32_t WindowCache::Find(const BlockHash& hash) const {
  const auto it = by_hash_.find(hash);
  return it == by_hash_.end() ? kNoBlock : it->second;
}

void WindowCache::Open(const std::vector<BlockHash>& hashes, int32_t num_blocks, WindowSpan* span) {
  assert(span->blocks.empty());
  span->first = FirstBlock(num_blocks * tokens_per_block_);
  span->blocks.assign(span->first, kNoBlock);
  for (int32_t i = span->first; i < num_blocks; ++i) Extend(Find(hashes[i]), span);
}

void WindowCache::Extend(int32_t block, WindowSpan* span) {
  assert(block != kNoBlock);
  Acquire(block);
  span->blocks.push_back(block);
}

int32_t WindowCache::Releasable(int32_t first_block, const WindowSpan& span) const {
  int32_t count = 0;
  for (int32_t i = span.first; i < std::min(first_block, span.size()); ++i) {
    count += blocks_.refs(span.blocks[i]) == 1 ? 1 : 0;
  }
  return count;
}

void WindowCache::ReleaseBelow(int32_t first_block, WindowSpan* span) {
  for (const int32_t end = std::min(first_block, span->size()); span->first < end; ++span->first) {
    Release(span->blocks[span->first]);
    span->blocks[span->first] = kNoBlock;
  }
}

void WindowCache::Grow(int32_t num_blocks, TimeNs now, WindowSpan* span) {
  while (span->size() < num_blocks) {
    if (blocks_.num_free() == 0) {
      Expire(now);
      assert(!idle_.empty());
      ++num_evicted_;
      Drop(std::get<2>(*idle_.begin()));
    }
    span->blocks.push_back(blocks_.Allocate());
  }
}

void WindowCache::Store(int32_t i, const BlockHash& hash, Retain retain, const WindowSpan& span) {
  // The window may have passed it before its last token was known. A twin that is cached already
  // serves as well as ours.
  if (i < span.first || !by_hash_.emplace(hash, span.blocks[i]).second) return;
  Entry& entry = entries_[span.blocks[i]];
  assert(!entry.cached);
  entry.hash = hash;
  entry.cached = true;
  SetRetain(span.blocks[i], retain);
}

void WindowCache::Raise(int32_t i, Retain retain, const WindowSpan& span) {
  if (i < span.first) return;
  const Entry& entry = entries_[span.blocks[i]];
  const bool longer = retain.priority == entry.priority && retain.expires > entry.expires;
  if (!entry.cached || (retain.priority <= entry.priority && !longer)) return;
  SetRetain(span.blocks[i], retain);
}

// The block must not be listed as idle.
void WindowCache::SetRetain(int32_t block, Retain retain) {
  Entry& entry = entries_[block];
  if (entry.expires != kNever) expiries_.erase({entry.expires, block});
  entry.priority = retain.priority;
  entry.expires = retain.expires;
  if (entry.expires != kNever) expiries_.emplace(entry.expires, block);
}

void WindowCache::Close(WindowSpan* span) {
  ReleaseBelow(span->size(), span);
  span->blocks.clear();
  span->first = 0;
}

void WindowCache::Forget() {
  while (!idle_.empty()) Drop(std::get<2>(*idle_.begin()));
  assert(by_hash_.empty() && expiries_.empty());
}

WindowCache::EvictKey WindowCache::KeyOf(int32_t block) const {
  return {entries_[block].priority, entries_[block].last_use, block};
}

void WindowCache::Acquire(int32_t block) {
  if (blocks_.refs(block) == 0) idle_.erase(KeyOf(block));
  blocks_.Ref(block);
}

void WindowCache::Release(int32_t block) {
  if (!blocks_.Unref(block)) return;
  if (!entries_[block].cached) return blocks_.Free(block);
  entries_[block].last_use = ++clock_;
  idle_.insert(KeyOf(block));
}

void WindowCache::Expire(TimeNs now) {
  while (!expiries_.empty() && expiries_.begin()->first <= now) {
    const int32_t block = expiries_.begin()->second;
    const bool idle = idle_.erase(KeyOf(block)) > 0;
    SetRetain(block, {});
    if (idle) idle_.insert(KeyOf(block));
  }
}

// Forgets an idle block's content and frees it.
void WindowCache::Drop(int32_t block) {
  idle_.erase(KeyOf(block));
  SetRetain(block, {});
  by_hash_.erase(entries_[block].hash);
  entries_[block] = {};
  blocks_.Free(block);
}

std::string WindowCache::CheckIntegrity(const std::vector<const WindowSpan*>& spans) const {
  std::vector<int32_t> holders(blocks_.total(), 0);
  for (const WindowSpan* span : spans) {
    for (int32_t i = 0; i < span->size(); ++i) {
      const int32_t block = span->blocks[i];
      if ((block == kNoBlock) != (i < span->first)) return "a span misses a block it should hold";
      if (block == kNoBlock) continue;
      if (block < 0 || block >= blocks_.total()) return "a span names a block outside the pool";
      ++holders[block];
    }
  }
  int32_t used = 0;
  for (int32_t block = 0; block < blocks_.total(); ++block) {
    const std::string name = "block " + std::to_string(block);
    if (holders[block] != blocks_.refs(block)) {
      return name + " has " + std::to_string(blocks_.refs(block)) + " references but " +
             std::to_string(holders[block]) + " holders";
    }
    if (holders[block] > 1 && !entries_[block].cached) return name + " is writable and shared";
    used += holders[block] > 0 ? 1 : 0;
  }
  for (const int32_t block : blocks_.free_list()) {
    if (blocks_.refs(block) != 0 || entries_[block].cached) {
      return "block " + std::to_string(block) + " is free and in use";
    }
  }
  if (used + num_cached() + num_free() != num_total()) {
    return "used " + std::to_string(used) + " + cached " + std::to_string(num_cached()) +
           " + free " + std::to_string(num_free()) + " != total " + std::to_string(num_total());
  }
  return CheckCached();
}

std::string WindowCache::CheckCached() const {
  size_t cached = 0, expiring = 0;
  for (int32_t block = 0; block < blocks_.total(); ++block) {
    const Entry& entry = entries_[block];
    if (!entry.cached) continue;
    ++cached;
    if (entry.expires != kNever) ++expiring;
    const std::string name = "block " + std::to_string(block);
    if (Find(entry.hash) != block) return name + " is not found by its hash";
    if ((blocks_.refs(block) == 0) != (idle_.count(KeyOf(block)) > 0)) {
      return name + " is idle but not listed, or listed but not idle";
    }
  }
  if (expiring != expiries_.size()) return "the list of expiries is not that of the blocks";
  return cached == by_hash_.size() ? "" : "the hash table and the blocks disagree";
}

}  // namespace slipstream
