// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/kv_groups.h"

#include <algorithm>
#include <cassert>
#include <limits>

namespace slipstream {
namespace {

std::string NameOf(const KvGroup& group, size_t index) {
  std::string name = "KV group " + std::to_string(index) + " (" + KvKindName(group.kind);
  if (group.windowed()) name += ", window " + std::to_string(group.window);
  return name + ")";
}

}  // namespace

KvGroups::KvGroups(const Options& options) : options_(options) {
  for (const KvGroup& group : options.groups) {
    if (group.windowed()) {
      windows_.emplace_back(group, options.tokens_per_block);
      continue;
    }
    assert(!full_ && windows_.empty());
    const bool alone = options.groups.size() == 1;
    full_.emplace(KvCache::Options{group.num_blocks, options.tokens_per_block, options.reuse,
                                   options.partial_reuse && alone});
  }
}

KvGroups::Match KvGroups::Lookup(uint64_t salt, const std::vector<BlockHash>& hashes,
                                 const int32_t* tokens, int32_t max_tokens, uint64_t step) {
  Match match;
  match.lookups = 1;
  match.windows.resize(windows_.size());
  if (!options_.reuse) return match;
  if (full_) {
    match.full = full_->Lookup(salt, hashes, tokens, max_tokens, step);
    match.num_blocks = static_cast<int32_t>(match.full.nodes.size());
  } else {
    match.num_blocks = std::min(static_cast<int32_t>(hashes.size()),
                                std::max(max_tokens, 0) / options_.tokens_per_block);
  }
  if (full_) match.lookups += match.num_blocks;
  if (windows_.empty()) return match;
  match.num_blocks = LongestVisible(hashes, &match);
  if (full_) full_->Truncate(match.num_blocks, &match.full);
  for (size_t g = 0; g < windows_.size(); ++g) {
    const WindowCache& window = windows_[g];
    const int32_t first = window.FirstBlock(match.num_blocks * options_.tokens_per_block);
    for (int32_t i = first; i < match.num_blocks; ++i) {
      ++match.windows[g].blocks;
      if (window.refs(window.Find(hashes[i])) == 0) ++match.windows[g].idle_blocks;
    }
  }
  return match;
}

// The most blocks, at most match->num_blocks, after which every window has all that it sees. Walks
// down, and looks at no block of a group twice.
int32_t KvGroups::LongestVisible(const std::vector<BlockHash>& hashes, Match* match) const {
  int32_t length = match->num_blocks;
  std::vector<int32_t> cached_from(windows_.size(), length);  // up to `length` without a gap
  for (size_t g = 0; g < windows_.size();) {
    const int32_t needed = windows_[g].FirstBlock(length * options_.tokens_per_block);
    int32_t from = std::min(cached_from[g], length);
    bool gap = false;
    while (from > needed && !gap) {
      ++match->lookups;
      gap = windows_[g].Find(hashes[from - 1]) == kNoBlock;
      --from;
    }
    cached_from[g] = from;
    if (!gap) {
      ++g;
      continue;
    }
    length = from;
    g = 0;
  }
  return length;
}

void KvGroups::Open(uint64_t salt, const Match& match, bool share, SequenceKv* kv) {
  assert(!kv->active);
  kv->active = true;
  kv->unshared = !share || !options_.reuse;
  kv->num_blocks = kv->stored = match.num_blocks;
  kv->announced = 0;
  kv->next_position = match.num_blocks * options_.tokens_per_block;
  if (full_) {
    full_->Open(salt, match.full, &kv->full);
    kv->full.detached |= kv->unshared;
  }
  kv->windows.resize(windows_.size());
  for (size_t g = 0; g < windows_.size(); ++g) {
    windows_[g].Open(kv->hashes, match.num_blocks, &kv->windows[g]);
  }
}

bool KvGroups::ExtendShared(SequenceKv* kv) {
  if (kv->unshared || kv->stored != kv->num_blocks) return false;
  const BlockHash& hash = kv->hashes[kv->stored];
  for (const WindowCache& window : windows_) {
    if (window.Find(hash) == kNoBlock) return false;
  }
  if (full_ && !full_->ExtendShared(hash, &kv->full)) return false;
  for (size_t g = 0; g < windows_.size(); ++g) {
    windows_[g].Extend(windows_[g].Find(hash), &kv->windows[g]);
  }
  ++kv->num_blocks;
  ++kv->stored;
  return true;
}

void KvGroups::Retain(int32_t i, PrefixTree::Retain retain, SequenceKv* kv) {
  if (full_) full_->Retain(i, retain, kv->full);
  for (size_t g = 0; g < windows_.size(); ++g) windows_[g].Raise(i, retain, kv->windows[g]);
}

bool KvGroups::Advance(int32_t first, int32_t end, TimeNs now, SequenceKv* kv) {
  const int32_t num_blocks = std::max(BlocksFor(end), kv->num_blocks);
  const int32_t wanted = num_blocks - kv->num_blocks;
  for (size_t g = 0; g < windows_.size(); ++g) {
    const WindowCache& window = windows_[g];
    if (wanted <= window.num_available()) continue;
    const int32_t released = window.Releasable(window.FirstBlock(first), kv->windows[g]);
    if (wanted > window.num_available() + released) return false;
  }
  if (full_ && !full_->Grow(num_blocks, now, &kv->full)) return false;
  for (size_t g = 0; g < windows_.size(); ++g) {
    windows_[g].ReleaseBelow(windows_[g].FirstBlock(first), &kv->windows[g]);
    windows_[g].Grow(num_blocks, now, &kv->windows[g]);
  }
  kv->num_blocks = num_blocks;
  kv->next_position = end;
  return true;
}

void KvGroups::ReleaseUnseen(SequenceKv* kv) {
  for (size_t g = 0; g < windows_.size(); ++g) {
    windows_[g].ReleaseBelow(windows_[g].FirstBlock(kv->next_position), &kv->windows[g]);
  }
}

void KvGroups::StoreNext(const int32_t* block_tokens, PrefixTree::Retain retain, uint64_t step,
                         SequenceKv* kv) {
  const BlockHash& hash = kv->hashes[kv->stored];
  if (full_) full_->Store(hash, block_tokens, retain, step, &kv->full);
  for (size_t g = 0; g < windows_.size(); ++g) {
    windows_[g].Store(kv->stored, hash, retain, kv->windows[g]);
  }
  if (Stores(*kv)) ++kv->stored;
}

void KvGroups::Close(SequenceKv* kv) {
  if (!kv->active) return;
  if (full_) full_->Close(&kv->full);
  for (size_t g = 0; g < windows_.size(); ++g) windows_[g].Close(&kv->windows[g]);
  kv->active = kv->unshared = false;
  kv->num_blocks = kv->announced = kv->stored = kv->next_position = 0;
}

void KvGroups::Forget() {
  if (full_) full_->Forget();
  for (WindowCache& window : windows_) window.Forget();
}

int64_t KvGroups::total_bytes() const {
  int64_t bytes = 0;
  for (const KvGroup& group : options_.groups) bytes += group.num_blocks * group.bytes_per_block;
  return bytes;
}

int64_t KvGroups::used_bytes() const {
  int64_t bytes = full_ ? full_->num_used() * options_.groups[0].bytes_per_block : 0;
  for (const WindowCache& window : windows_) {
    bytes += window.num_used() * window.group().bytes_per_block;
  }
  return bytes;
}

std::string KvGroups::CheckIntegrity(const std::vector<const SequenceKv*>& active) const {
  std::vector<const KvSpan*> spans;
  for (const SequenceKv* kv : active) {
    if (kv->announced > kv->num_blocks) return "the worker knows blocks that are not there";
    if (full_ && static_cast<int32_t>(kv->full.blocks.size()) != kv->num_blocks) {
      return "a sequence's full span and its block tables differ in length";
    }
    spans.push_back(&kv->full);
  }
  std::string broken = full_ ? full_->CheckIntegrity(spans) : "";
  for (size_t g = 0; g < windows_.size() && broken.empty(); ++g) {
    std::vector<const WindowSpan*> windows;
    for (const SequenceKv* kv : active) {
      const WindowSpan& span = kv->windows[g];
      if (span.size() != kv->num_blocks) return "a window span and its block table differ";
      if (span.first > windows_[g].FirstBlock(kv->next_position)) {
        return "a sequence gave up a block that it will see";
      }
      windows.push_back(&span);
    }
    broken = windows_[g].CheckIntegrity(windows);
    if (!broken.empty()) broken = NameOf(windows_[g].group(), g + (full_ ? 1 : 0)) + ": " + broken;
  }
  return broken;
}

Status CheckKvGroups(const WorkerInfo& worker, const ExecutorConfig& config) {
  const auto blocks_for = [&](int64_t tokens) {
    return (tokens + worker.tokens_per_block - 1) / worker.tokens_per_block;
  };
  if (worker.kv_groups.empty()) return Status::Internal("the worker has no KV groups");
  const int64_t most =
      std::numeric_limits<int64_t>::max() / static_cast<int64_t>(worker.kv_groups.size());
  int64_t longest = blocks_for(worker.max_seq_len);
  for (size_t i = 0; i < worker.kv_groups.size(); ++i) {
    const KvGroup& group = worker.kv_groups[i];
    const std::string name = NameOf(group, i);
    if (group.windowed() ? group.window < 1 : i > 0) {
      return Status::Internal(name + " of the worker: windows are at least 1, and only the first " +
                              "group may be full");
    }
    if (group.bytes_per_block > most / std::max(group.num_blocks, 1)) {
      return Status::Internal(name + " of the worker has " + std::to_string(group.num_blocks) +
                              " blocks of " + std::to_string(group.bytes_per_block) +
                              " bytes, more than can be counted");
    }
    if (!group.windowed()) longest = std::min<int64_t>(longest, group.num_blocks);
    const int64_t window = group.WindowBlocks(worker.tokens_per_block) + 1;
    const int64_t step = config.max_num_tokens / worker.tokens_per_block;
    const int64_t needed = group.windowed() ? std::min(longest, window + step) : 1;
    if (group.num_blocks < needed) {
      return Status::InvalidArgument(name + " has " + std::to_string(group.num_blocks) +
                                     " blocks of " + std::to_string(worker.tokens_per_block) +
                                     " tokens; one sequence in steps of " +
                                     std::to_string(config.max_num_tokens) +
                                     " tokens (max_num_tokens) needs " + std::to_string(needed));
    }
  }
  return Status::Ok();
}

bool CanReplace(const std::vector<KvGroup>& before, const std::vector<KvGroup>& now) {
  return std::equal(
      before.begin(), before.end(), now.begin(), now.end(), [](const KvGroup& a, const KvGroup& b) {
        return a.kind == b.kind && a.window == b.window && a.num_blocks <= b.num_blocks;
      });
}

}  // namespace slipstream
