// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "executor/block_hash.h"
#include "executor/kv_blocks.h"
#include "executor/request.h"

namespace slipstream {

// The radix tree over full KV blocks: a node is one block whose content is known, its parent the
// block before it. Nodes are found by their chained hash.
//
// Invariants: a node's block is referenced only if its parent's is (a sequence references its path
// from the root without gaps), so idle nodes form the lower parts of the tree and can all be
// evicted, leaves first. Among evictable leaves the one with the lowest priority goes first, then
// the least recently used. Owner: the executor's thread.
class PrefixTree {
 public:
  using NodeId = int32_t;
  static constexpr NodeId kNone = -1;
  static constexpr int32_t kDefaultPriority = 35;

  struct Retain {
    int32_t priority = kDefaultPriority;
    TimeNs expires = kNever;  // then the priority falls back to the default
  };

  // What routers want to know: blocks that appeared and vanished.
  struct KvEvent {
    bool stored;  // else removed
    BlockHash hash;
    BlockHash parent;
  };

  PrefixTree(KvBlocks* blocks, int32_t tokens_per_block);

  // The root of everything cached under `salt`, pinned until UnpinRoot.
  NodeId PinRoot(uint64_t salt);
  void UnpinRoot(NodeId root);

  NodeId Find(const BlockHash& hash) const;
  int32_t block(NodeId node) const { return nodes_[node].block; }
  // False while the step that fills the block may not have run yet when step `step` starts.
  bool FilledBefore(NodeId node, uint64_t step) const { return nodes_[node].filled_by < step; }

  // The child of `parent` sharing the longest prefix (>= 1, < a full block) with tokens[0, n) among
  // those filled before `step`; kNone if there is none.
  NodeId LongestPartial(NodeId parent, const int32_t* tokens, int32_t n, uint64_t step,
                        int32_t* common) const;

  // Adds `block` (held by the caller, whose reference stays its own) below `parent`. The hash must
  // not be in the tree. `filled_by`: the step that computes the block's last position.
  NodeId Insert(NodeId parent, const BlockHash& hash, const int32_t* tokens, int32_t block,
                Retain retain, uint64_t filled_by);

  // A sequence starts / stops using the node's block.
  void Acquire(NodeId node);
  void Release(NodeId node);
  // Takes the higher of the node's retention and `retain`. The node must be in use.
  void Raise(NodeId node, Retain retain);

  // Frees the most expendable leaf; false when no node can be evicted.
  bool Evict(TimeNs now);
  // Forgets everything, after the worker lost its KV. No node may be in use.
  void Clear();

  int32_t num_idle() const { return num_idle_; }  // cached blocks that no sequence uses
  int32_t num_nodes() const { return static_cast<int32_t>(by_hash_.size()); }
  uint64_t num_evicted() const { return num_evicted_; }
  void set_event_sink(std::function<void(const KvEvent&)> sink) { on_event_ = std::move(sink); }

  // Empty when all invariants hold; else what is broken.
  std::string CheckIntegrity() const;

 private:
  struct Node {
    BlockHash hash;
    NodeId parent = kNone;
    NodeId first_child = kNone;
    NodeId prev = kNone, next = kNone;  // siblings
    int32_t block = -1;                 // -1: a root, or a vacant node
    int32_t pins = 0;                   // roots only
    int32_t priority = kDefaultPriority;
    TimeNs expires = kNever;
    uint64_t last_use = 0;
    uint64_t filled_by = 0;
    uint64_t salt = 0;  // roots only
    bool live = false;
  };
  using EvictKey = std::tuple<int32_t, uint64_t, NodeId>;  // priority, last use, node

  NodeId NewNode();
  void Link(NodeId node, NodeId parent);
  void Unlink(NodeId node);
  void DropRootIfUnused(NodeId root);
  bool Evictable(NodeId node) const;
  EvictKey KeyOf(NodeId node) const;
  void Touch(NodeId node);
  void SetRetain(NodeId node, Retain retain);
  void Expire(TimeNs now);
  void Remove(NodeId node);
  void Emit(bool stored, NodeId node);

  KvBlocks* const blocks_;
  const int32_t tokens_per_block_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;  // [node, tokens_per_block]
  std::vector<NodeId> vacant_;
  std::unordered_map<BlockHash, NodeId, BlockHashHasher> by_hash_;
  std::unordered_map<uint64_t, NodeId> roots_;
  std::set<EvictKey> leaves_;                     // exactly the evictable nodes
  std::set<std::pair<TimeNs, NodeId>> expiries_;  // exactly the nodes whose priority expires
  int32_t num_idle_ = 0;
  uint64_t clock_ = 0;
  uint64_t num_evicted_ = 0;
  std::function<void(const KvEvent&)> on_event_;
};

}  // namespace slipstream
