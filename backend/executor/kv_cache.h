// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "executor/block_hash.h"
#include "executor/kv_blocks.h"
#include "executor/prefix_tree.h"
#include "executor/step.h"

namespace slipstream {

// The blocks of one sequence, in order of position. The first nodes.size() of them are nodes of the
// prefix tree; the rest are its own.
struct KvSpan {
  PrefixTree::NodeId root = PrefixTree::kNone;  // pinned while the span is in use
  std::vector<int32_t> blocks;
  std::vector<PrefixTree::NodeId> nodes;
  // A twin of the next block is in the tree already (another sequence computed the same tokens at
  // the same time), so that ours and all that follow stay out of it.
  bool detached = false;

  bool active() const { return root != PrefixTree::kNone; }
};

// The pool of the full group and its prefix tree: what a sequence needs of them. Owner: the
// executor's thread.
class KvCache {
 public:
  struct Options {
    int32_t num_blocks = 0;
    int32_t tokens_per_block = 32;
    bool reuse = true;
    bool partial_reuse = true;
  };
  // The leading tokens of a block that another block provides.
  struct PartialMatch {
    PrefixTree::NodeId source = PrefixTree::kNone;
    int32_t num_tokens = 0;
  };

  explicit KvCache(const Options& options);

  // What a walk down the tree found for a sequence; nothing is taken yet.
  struct Match {
    std::vector<PrefixTree::NodeId> nodes;
    PartialMatch partial;
    int32_t idle_blocks = 0;  // of the nodes, those that no sequence uses now
  };
  // Longest cached prefix of tokens[0, max_tokens); the hashes cover the full blocks. `step`: the
  // step being built.
  Match Lookup(uint64_t salt, const std::vector<BlockHash>& hashes, const int32_t* tokens,
               int32_t max_tokens, uint64_t step);

  // Starts a span with what Lookup found. The partial match's copy needs one block of its own.
  void Open(uint64_t salt, const Match& match, KvSpan* span);
  // Appends the node that holds the next full block, if another sequence computed it meanwhile.
  bool ExtendShared(const BlockHash& hash, KvSpan* span);
  // Raises the retention of the span's stored block i.
  void Retain(int32_t i, PrefixTree::Retain retain, const KvSpan& span) {
    tree_.Raise(span.nodes[i], retain);
  }
  // Shortens a match to its first `num_blocks` blocks.
  void Truncate(int32_t num_blocks, Match* match) const;
  // Grows the span to `num_blocks` blocks, evicting idle ones as needed; false and unchanged if
  // that many cannot be had.
  bool Grow(int32_t num_blocks, TimeNs now, KvSpan* span);
  // Offers the span's next own block, now full of known tokens, for reuse.
  void Store(const BlockHash& hash, const int32_t* block_tokens, PrefixTree::Retain retain,
             uint64_t step, KvSpan* span);
  // Gives everything back; stored blocks stay cached.
  void Close(KvSpan* span);
  // After the worker lost its memory; no span may be open.
  void Forget() { tree_.Clear(); }

  int32_t tokens_per_block() const { return options_.tokens_per_block; }
  int32_t BlocksFor(int32_t tokens) const {
    return (tokens + options_.tokens_per_block - 1) / options_.tokens_per_block;
  }
  // Blocks that could be allocated now, evicting if need be.
  int32_t num_available() const { return blocks_.num_free() + tree_.num_idle(); }
  int32_t num_free() const { return blocks_.num_free(); }
  int32_t num_cached() const { return tree_.num_idle(); }
  int32_t num_total() const { return blocks_.total(); }
  int32_t num_used() const { return num_total() - num_free() - num_cached(); }
  int32_t refs(int32_t block) const { return blocks_.refs(block); }
  int32_t block_of(PrefixTree::NodeId node) const { return tree_.block(node); }
  uint64_t num_evicted() const { return tree_.num_evicted(); }
  PrefixTree& tree() { return tree_; }

  // `spans`: every open span. Empty when all is well: references equal holders, used + cached +
  // free = total, the tree is sound.
  std::string CheckIntegrity(const std::vector<const KvSpan*>& spans) const;

 private:
  const Options options_;
  KvBlocks blocks_;
  PrefixTree tree_;
};

}  // namespace slipstream
