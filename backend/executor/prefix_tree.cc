// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/prefix_tree.h"

#include <algorithm>
#include <cassert>

namespace slipstream {
namespace {

// A child list longer than this is only sampled when looking for a partial match: admission must
// stay cheap however many continuations a prefix has.
constexpr int kMaxPartialScan = 32;

}  // namespace

PrefixTree::PrefixTree(KvBlocks* blocks, int32_t tokens_per_block)
    : blocks_(blocks), tokens_per_block_(tokens_per_block) {
  // Growing while it serves would copy megabytes within one step. Memory that is reserved takes
  // none before it is used. Roots come on top: as many as there are salts in use.
  const auto total = static_cast<size_t>(blocks->total());
  by_hash_.reserve(total * 2);
  nodes_.reserve(total + total / 4);
  tokens_.reserve((total + total / 4) * static_cast<size_t>(tokens_per_block));
}

PrefixTree::NodeId PrefixTree::NewNode() {
  NodeId id;
  if (!vacant_.empty()) {
    id = vacant_.back();
    vacant_.pop_back();
    nodes_[id] = Node{};
  } else {
    id = static_cast<NodeId>(nodes_.size());
    nodes_.emplace_back();
    tokens_.resize(tokens_.size() + tokens_per_block_);
  }
  nodes_[id].live = true;
  return id;
}

PrefixTree::NodeId PrefixTree::PinRoot(uint64_t salt) {
  auto [it, added] = roots_.try_emplace(salt, kNone);
  if (added) {
    it->second = NewNode();
    nodes_[it->second].hash = RootHash(salt);
    nodes_[it->second].salt = salt;
  }
  ++nodes_[it->second].pins;
  return it->second;
}

void PrefixTree::UnpinRoot(NodeId root) {
  --nodes_[root].pins;
  DropRootIfUnused(root);
}

void PrefixTree::DropRootIfUnused(NodeId root) {
  if (nodes_[root].pins > 0 || nodes_[root].first_child != kNone) return;
  roots_.erase(nodes_[root].salt);
  nodes_[root].live = false;
  vacant_.push_back(root);
}

PrefixTree::NodeId PrefixTree::Find(const BlockHash& hash) const {
  const auto it = by_hash_.find(hash);
  return it == by_hash_.end() ? kNone : it->second;
}

PrefixTree::NodeId PrefixTree::LongestPartial(NodeId parent, const int32_t* tokens, int32_t n,
                                              uint64_t step, int32_t* common) const {
  NodeId best = kNone;
  *common = 0;
  const int32_t limit = std::min(n, tokens_per_block_);
  int scanned = 0;
  for (NodeId child = nodes_[parent].first_child; child != kNone && scanned < kMaxPartialScan;
       child = nodes_[child].next, ++scanned) {
    if (!FilledBefore(child, step)) continue;
    const int32_t* theirs = &tokens_[static_cast<size_t>(child) * tokens_per_block_];
    const int32_t shared =
        static_cast<int32_t>(std::mismatch(tokens, tokens + limit, theirs).first - tokens);
    if (shared > *common) {
      *common = shared;
      best = child;
    }
  }
  return best;
}

void PrefixTree::Link(NodeId node, NodeId parent) {
  Node& n = nodes_[node];
  n.parent = parent;
  n.next = nodes_[parent].first_child;
  if (n.next != kNone) nodes_[n.next].prev = node;
  nodes_[parent].first_child = node;
}

void PrefixTree::Unlink(NodeId node) {
  Node& n = nodes_[node];
  if (n.prev != kNone) {
    nodes_[n.prev].next = n.next;
  } else {
    nodes_[n.parent].first_child = n.next;
  }
  if (n.next != kNone) nodes_[n.next].prev = n.prev;
}

PrefixTree::EvictKey PrefixTree::KeyOf(NodeId node) const {
  return {nodes_[node].priority, nodes_[node].last_use, node};
}

bool PrefixTree::Evictable(NodeId node) const {
  const Node& n = nodes_[node];
  return n.block >= 0 && n.first_child == kNone && blocks_->refs(n.block) == 0;
}

PrefixTree::NodeId PrefixTree::Insert(NodeId parent, const BlockHash& hash, const int32_t* tokens,
                                      int32_t block, Retain retain, uint64_t filled_by) {
  assert(blocks_->refs(block) > 0);
  const NodeId id = NewNode();
  Node& n = nodes_[id];
  n.hash = hash;
  n.block = block;
  n.filled_by = filled_by;
  n.last_use = ++clock_;
  std::copy_n(tokens, tokens_per_block_, &tokens_[static_cast<size_t>(id) * tokens_per_block_]);
  // The parent is in use by the same sequence, so it is not among the evictable leaves.
  Link(id, parent);
  by_hash_.emplace(hash, id);
  SetRetain(id, retain);
  Emit(true, id);
  return id;
}

void PrefixTree::Acquire(NodeId node) {
  Node& n = nodes_[node];
  if (blocks_->refs(n.block) == 0) {
    --num_idle_;
    if (n.first_child == kNone) leaves_.erase(KeyOf(node));
  }
  blocks_->Ref(n.block);
}

void PrefixTree::Raise(NodeId node, Retain retain) {
  const Node& n = nodes_[node];
  const bool longer = retain.priority == n.priority && retain.expires > n.expires;
  if (retain.priority > n.priority || longer) SetRetain(node, retain);
}

// The node must not be listed as evictable.
void PrefixTree::SetRetain(NodeId node, Retain retain) {
  Node& n = nodes_[node];
  if (n.expires != kNever) expiries_.erase({n.expires, node});
  n.priority = retain.priority;
  n.expires = retain.expires;
  if (n.expires != kNever) expiries_.emplace(n.expires, node);
}

void PrefixTree::Release(NodeId node) {
  Node& n = nodes_[node];
  if (!blocks_->Unref(n.block)) return;
  ++num_idle_;
  n.last_use = ++clock_;
  if (n.first_child == kNone) leaves_.insert(KeyOf(node));
}

void PrefixTree::Expire(TimeNs now) {
  while (!expiries_.empty() && expiries_.begin()->first <= now) {
    const NodeId node = expiries_.begin()->second;
    const bool leaf = Evictable(node);
    if (leaf) leaves_.erase(KeyOf(node));
    SetRetain(node, {});
    if (leaf) leaves_.insert(KeyOf(node));
  }
}

bool PrefixTree::Evict(TimeNs now) {
  Expire(now);
  if (leaves_.empty()) return false;
  ++num_evicted_;
  Remove(std::get<2>(*leaves_.begin()));
  return true;
}

void PrefixTree::Remove(NodeId node) {
  Emit(false, node);
  leaves_.erase(KeyOf(node));
  SetRetain(node, {});
  Unlink(node);
  Node& n = nodes_[node];
  by_hash_.erase(n.hash);
  blocks_->Free(n.block);
  --num_idle_;
  const NodeId parent = n.parent;
  n.live = false;
  n.block = -1;
  vacant_.push_back(node);
  if (nodes_[parent].block < 0) {
    DropRootIfUnused(parent);
  } else if (Evictable(parent)) {
    leaves_.insert(KeyOf(parent));
  }
}

void PrefixTree::Clear() {
  while (!leaves_.empty()) Remove(std::get<2>(*leaves_.begin()));
  assert(num_idle_ == 0 && by_hash_.empty() && expiries_.empty());
}

void PrefixTree::Emit(bool stored, NodeId node) {
  if (on_event_) on_event_({stored, nodes_[node].hash, nodes_[nodes_[node].parent].hash});
}

std::string PrefixTree::CheckIntegrity() const {
  size_t idle = 0, evictable = 0, live = 0, expiring = 0;
  for (NodeId id = 0; id < static_cast<NodeId>(nodes_.size()); ++id) {
    const Node& n = nodes_[id];
    if (!n.live || n.block < 0) continue;
    ++live;
    const std::string name = "node " + std::to_string(id);
    const auto it = by_hash_.find(n.hash);
    if (it == by_hash_.end() || it->second != id) return name + " is not found by its hash";
    const Node& parent = nodes_[n.parent];
    if (!parent.live) return name + " hangs below a node that was removed";
    const bool used = blocks_->refs(n.block) > 0;
    if (used && parent.block >= 0 && blocks_->refs(parent.block) == 0) {
      return name + " is used while its parent is not";
    }
    if (!used) ++idle;
    if (n.expires != kNever) ++expiring;
    if (Evictable(id)) {
      ++evictable;
      if (leaves_.count(KeyOf(id)) == 0) return name + " is evictable but not listed";
    }
  }
  if (live != by_hash_.size()) return "the hash table and the nodes disagree";
  if (static_cast<int32_t>(idle) != num_idle_) return "the count of idle nodes is wrong";
  if (expiring != expiries_.size()) return "the list of expiries is not that of the nodes";
  if (evictable != leaves_.size()) return "a node is listed as evictable that is not";
  return "";
}

}  // namespace slipstream
