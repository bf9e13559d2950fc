// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/prefix_tree.h"

#include <vector>

#include "doctest/doctest.h"

namespace slipstream {
namespace {

struct Tree {
  KvBlocks blocks{8};
  PrefixTree tree{&blocks, 2};
  PrefixTree::NodeId root = tree.PinRoot(0);

  // A node below `parent` with tokens (a, b), in use.
  PrefixTree::NodeId Add(PrefixTree::NodeId parent, const BlockHash& above, int32_t a, int32_t b,
                         PrefixTree::Retain retain = {}) {
    const int32_t tokens[2] = {a, b};
    last = ChainHash(above, tokens, 2);
    return tree.Insert(parent, last, tokens, blocks.Allocate(), retain, 1);
  }
  BlockHash last;
};

}  // namespace

TEST_CASE("blocks are free, used or idle, and come back once") {
  KvBlocks blocks(2);
  CHECK(blocks.Allocate() == 0);
  CHECK(blocks.Allocate() == 1);
  CHECK(blocks.Allocate() == -1);
  blocks.Ref(0);
  CHECK(!blocks.Unref(0));
  CHECK(blocks.Unref(0));
  blocks.Free(0);
  CHECK(blocks.num_free() == 1);
}

TEST_CASE("hashes chain: same tokens after different prefixes differ") {
  const int32_t tokens[2] = {1, 2};
  const BlockHash a = ChainHash(RootHash(0), tokens, 2);
  CHECK(a == ChainHash(RootHash(0), tokens, 2));
  CHECK(a != ChainHash(RootHash(1), tokens, 2));
  CHECK(a != ChainHash(a, tokens, 2));
  CHECK(a != ChainHash(RootHash(0), tokens, 1));
}

TEST_CASE("eviction takes leaves, least recently used first") {
  Tree t;
  const auto a = t.Add(t.root, RootHash(0), 1, 2);
  const BlockHash hash_a = t.last;
  const auto b = t.Add(a, hash_a, 3, 4);
  const BlockHash hash_b = t.last;
  const auto c = t.Add(a, hash_a, 5, 6);
  const BlockHash hash_c = t.last;
  CHECK(!t.tree.Evict(0));
  t.tree.Release(b);
  t.tree.Release(c);
  t.tree.Release(a);
  CHECK(t.tree.num_idle() == 3);
  REQUIRE(t.tree.CheckIntegrity() == "");
  REQUIRE(t.tree.Evict(0));
  CHECK(t.tree.Find(hash_b) == PrefixTree::kNone);
  CHECK(t.tree.Find(hash_c) == c);
  REQUIRE(t.tree.Evict(0));
  REQUIRE(t.tree.Evict(0));
  CHECK(t.tree.Find(hash_a) == PrefixTree::kNone);
  CHECK(!t.tree.Evict(0));
  CHECK(t.blocks.num_free() == 8);
}

TEST_CASE("a block that is asked for again and again has one expiry, and none once it is gone") {
  Tree t;
  const auto a = t.Add(t.root, RootHash(0), 1, 2, {80, 100});
  for (TimeNs expires = 200; expires < 300; ++expires) t.tree.Raise(a, {80, expires});
  CHECK(t.tree.CheckIntegrity() == "");
  t.tree.Raise(a, {90, 150});
  t.tree.Release(a);
  CHECK(t.tree.Evict(120));
  CHECK(t.tree.CheckIntegrity() == "");
}

TEST_CASE("a higher priority stays longer, until it expires") {
  Tree t;
  const auto kept = t.Add(t.root, RootHash(0), 1, 2, {80, 1000});
  const BlockHash kept_hash = t.last;
  t.tree.Release(kept);
  const auto other = t.Add(t.root, RootHash(0), 3, 4);
  const BlockHash other_hash = t.last;
  t.tree.Release(other);
  SUBCASE("before") {
    REQUIRE(t.tree.Evict(999));
    CHECK(t.tree.Find(other_hash) == PrefixTree::kNone);
  }
  SUBCASE("after") {
    REQUIRE(t.tree.Evict(1000));
    CHECK(t.tree.Find(kept_hash) == PrefixTree::kNone);
  }
  REQUIRE(t.tree.CheckIntegrity() == "");
}

TEST_CASE("the longest partial match, among blocks that are filled") {
  Tree t;
  const int32_t want[2] = {1, 9};
  int32_t common = 0;
  t.Add(t.root, RootHash(0), 3, 4);
  CHECK(t.tree.LongestPartial(t.root, want, 2, 2, &common) == PrefixTree::kNone);
  const auto node = t.Add(t.root, RootHash(0), 1, 2);
  CHECK(t.tree.LongestPartial(t.root, want, 2, 2, &common) == node);
  CHECK(common == 1);
  CHECK(t.tree.LongestPartial(t.root, want, 2, 1, &common) == PrefixTree::kNone);
}

TEST_CASE("stored and removed blocks are announced") {
  Tree t;
  std::vector<bool> stored;
  t.tree.set_event_sink([&](const PrefixTree::KvEvent& e) { stored.push_back(e.stored); });
  const auto node = t.Add(t.root, RootHash(0), 1, 2);
  t.tree.Release(node);
  t.tree.Clear();
  CHECK(stored == std::vector<bool>{true, false});
}

}  // namespace slipstream
