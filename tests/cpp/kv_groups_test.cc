// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/kv_groups.h"

#include <limits>
#include <string>
#include <vector>

#include "engine_fixture.h"
#include "worker_link/scripted_model.h"

namespace slipstream {
namespace {

constexpr int32_t kBlock = 4;
using Ids = std::vector<int32_t>;

KvGroup Full(int32_t num_blocks) { return {KvKind::kFull, 0, num_blocks, 1000}; }
KvGroup Sliding(int32_t window, int32_t num_blocks) {
  return {KvKind::kSliding, window, num_blocks, 1};
}
KvGroup Chunked(int32_t window, int32_t num_blocks) {
  return {KvKind::kChunked, window, num_blocks, 1};
}

ExecutorConfig Config(int32_t max_num_tokens = 64) {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_tokens = max_num_tokens;
  return config;
}

// An Engine whose plans a strict model applies.
struct Served {
  explicit Served(std::vector<KvGroup> groups, ExecutorConfig config = Config())
      : model(Script(std::move(groups))), engine(config, model.Info(), nullptr) {
    const Status fits = CheckKvGroups(model.Info(), config);
    REQUIRE_MESSAGE(fits.ok(), fits.message());
  }

  static ScriptedWorkerConfig Script(std::vector<KvGroup> groups) {
    ScriptedWorkerConfig script;
    script.vocab_size = 100;
    script.max_seq_len = 400;
    script.tokens_per_block = kBlock;
    script.kv_groups = std::move(groups);
    return script;
  }

  void Submit(RequestId id, std::vector<int32_t> prompt, int32_t max_new) {
    auto request =
        Request::Create(EngineFixture::Spec(std::move(prompt), max_new), engine.limits());
    REQUIRE(request.ok());
    REQUIRE(engine.Submit(id, std::move(*request), now).ok());
  }

  bool Step() {
    if (!engine.BuildStep(++now, &plan)) return false;
    REQUIRE(engine.CheckIntegrity() == "");
    metrics = {};
    engine.FillMetrics(&metrics);
    auto result = model.Run(plan);
    REQUIRE_MESSAGE(result.ok(), result.status().message());
    REQUIRE(engine.OnResult(*result, ++now).ok());
    REQUIRE(engine.CheckIntegrity() == "");
    return true;
  }

  // Runs to the end; the prompt tokens that the last request did not compute.
  int32_t Run(RequestId id, std::vector<int32_t> prompt, int32_t max_new = 1) {
    Submit(id, std::move(prompt), max_new);
    while (Step()) {
    }
    return engine.TakeEvents().back().usage.cached_tokens;
  }

  // The ids that the last plan gave its sequences in a group.
  Ids NewIds(size_t group) const {
    const size_t count = plan.new_block_ids.size() / plan.num_groups;
    const auto begin = plan.new_block_ids.begin() + static_cast<ptrdiff_t>(group * count);
    return {begin, begin + static_cast<ptrdiff_t>(count)};
  }

  ScriptedModel model;
  Engine engine;
  StepPlan plan;
  MetricsSnapshot metrics;  // while the last step was in flight
  TimeNs now = 1000;
};

std::vector<int32_t> Then(std::vector<int32_t> tokens, const std::vector<int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

// Blocks in use while each of the positions 6, 7, … of a lone sequence is computed.
std::vector<int32_t> UsedByPosition(const KvGroup& group, int32_t count) {
  Served f({group}, Config(8));
  f.Submit(1, Iota(0, 6), count + 1);
  REQUIRE(f.Step());
  std::vector<int32_t> used;
  while (f.Step()) used.push_back(f.metrics.kv_blocks_used);
  return used;
}

}  // namespace

TEST_CASE("visible positions by kind") {
  CHECK(Sliding(8, 1).FirstVisible(7) == 0);
  CHECK(Sliding(8, 1).FirstVisible(8) == 1);
  CHECK(Sliding(1, 1).FirstVisible(8) == 8);
  CHECK(Chunked(8, 1).FirstVisible(7) == 0);
  CHECK(Chunked(8, 1).FirstVisible(8) == 8);
  CHECK(Chunked(8, 1).FirstVisible(15) == 8);
  CHECK(Full(1).FirstVisible(1000) == 0);
  CHECK(Sliding(1, 1).WindowBlocks(1) == 0);
  CHECK(Sliding(1, 1).WindowBlocks(kBlock) == 1);  // the block that it is in
  CHECK(Sliding(2, 1).WindowBlocks(kBlock) == 1);
  CHECK(Sliding(3, 1).WindowBlocks(kBlock) == 2);
  CHECK(Sliding(8, 1).WindowBlocks(kBlock) == 3);
}

TEST_CASE("a window gives a block back at the position that no longer sees it") {
  // Position 11 sees 4 and later, position 15 sees 8.
  CHECK(UsedByPosition(Sliding(8, 8), 11) == std::vector<int32_t>{2, 2, 3, 3, 3, 2, 3, 3, 3, 2, 3});
  CHECK(UsedByPosition(Chunked(8, 8), 11) == std::vector<int32_t>{2, 2, 1, 1, 1, 1, 2, 2, 2, 2, 1});
  // Chunks that begin within a block: 6 to 11, 12 to 17.
  CHECK(UsedByPosition(Chunked(6, 8), 8) == std::vector<int32_t>{1, 1, 2, 2, 2, 2, 1, 1});
  CHECK(UsedByPosition(Sliding(1, 8), 3) == std::vector<int32_t>{1, 1, 1});
}

TEST_CASE("a prompt longer than the pool of its window is prefilled through it") {
  Served f({Full(64), Sliding(8, 8)}, Config(16));
  f.Submit(1, Iota(0, 90), 2);
  std::vector<int64_t> bytes;
  while (f.Step()) bytes.push_back(f.metrics.kv_bytes_used);
  // Blocks of the full group by the thousand; the window holds two blocks and a chunk of four.
  CHECK(bytes == std::vector<int64_t>{4004, 8006, 12006, 16006, 20006, 23005, 23003});
}

TEST_CASE("a prefix is reused where every window has what it sees, without what lies below") {
  Served f({Full(32), Sliding(8, 24)});
  CHECK(f.Run(1, Iota(0, 24)) == 0);
  f.Submit(2, Then(Iota(0, 24), {90, 91}), 1);
  REQUIRE(f.Step());
  CHECK(f.plan.first_position == std::vector<uint32_t>{24});
  CHECK(f.plan.num_new_blocks == std::vector<uint32_t>{7});
  const Ids full = f.NewIds(0), window = f.NewIds(1);
  REQUIRE(full.size() == 7);
  REQUIRE(window.size() == 7);
  CHECK(Ids(window.begin(), window.begin() + 4) == Ids(4, kNoBlock));  // 24 sees 17 and later
  CHECK(window[4] >= 0);
  CHECK(f.metrics.kv_bytes_used == 7003);
}

TEST_CASE("prompts that arrive together share what each window still sees") {
  Served f({Full(32), Sliding(8, 24)});
  for (RequestId id = 1; id <= 3; ++id) {
    f.Submit(id, Then(Iota(0, 20), {static_cast<int32_t>(80 + id)}), 1);
  }
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{21, 1, 1});
  CHECK(f.plan.first_position == std::vector<uint32_t>{0, 20, 20});
  CHECK(f.NewIds(1)[6 + 2] == kNoBlock);
  CHECK(f.NewIds(1)[6 + 3] == f.NewIds(1)[3]);
  CHECK(f.metrics.kv_bytes_used == 8008);
}

TEST_CASE(
    "eviction in a windowed group alone: the prefix is computed again and then cached again") {
  Served f({Full(64), Sliding(8, 8)}, Config(16));
  CHECK(f.Run(1, Iota(0, 16)) == 0);
  CHECK(f.Run(2, Then(Iota(0, 16), {99})) == 16);
  CHECK(f.Run(3, Iota(30, 16)) == 0);
  CHECK(f.Run(4, Iota(60, 16)) == 0);  // takes the blocks of request 1 in the windowed group
  CHECK(f.metrics.kv_evicted_blocks == 0);
  CHECK(f.Run(5, Then(Iota(0, 16), {98})) == 0);
  CHECK(f.Run(6, Then(Iota(0, 16), {97})) == 16);
}

TEST_CASE("a longer prefix is taken where a shorter one has gaps") {
  KvGroups groups({{Full(16), Sliding(8, 8), Chunked(8, 2)}, kBlock, true, true});
  const std::vector<int32_t> tokens = Iota(0, 33);
  SequenceKv first;
  ExtendBlockHashes(0, tokens.data(), 33, kBlock, &first.hashes);
  const std::vector<BlockHash> hashes = first.hashes;
  groups.Open(0, groups.Lookup(0, hashes, tokens.data(), 0, 1), true, &first);
  for (int32_t i = 0; i < 8; ++i) {
    REQUIRE(groups.Advance(i * kBlock, (i + 1) * kBlock, 1, &first));
    groups.StoreNext(&tokens[i * kBlock], {}, 1, &first);
  }
  groups.Close(&first);
  const auto longest = [&](int32_t max_tokens) {
    return groups.Lookup(0, hashes, tokens.data(), max_tokens, 2).num_blocks;
  };
  CHECK(longest(32) == 8);
  // The chunked pool has its last chunk alone, but a prefix up to a chunk's end needs none of it.
  CHECK(longest(31) == 7);
  CHECK(longest(27) == 6);
  CHECK(longest(23) == 4);
  // Another sequence takes the two oldest blocks of the sliding group: 0 and 1.
  SequenceKv second;
  groups.Open(0, groups.Lookup(0, {}, tokens.data(), 0, 2), true, &second);
  REQUIRE(groups.Advance(0, 8, 2, &second));
  CHECK(longest(16) == 4);
  CHECK(longest(15) == 0);  // 8 sees block 0
  groups.Close(&second);
  REQUIRE(groups.CheckIntegrity({}) == "");
  groups.Forget();
  CHECK(longest(32) == 0);
  CHECK(groups.windows()[0].num_free() == 8);
}

TEST_CASE("guaranteed_no_evict starts what every window can hold to its end") {
  // A sequence needs its window of three blocks and the one it is in; a step's chunks four more.
  for (const int32_t blocks : {8, 11, 12}) {
    Served f({Full(200), Sliding(8, blocks)}, Config(16));
    for (RequestId id = 1; id <= 3; ++id) f.Submit(id, {static_cast<int32_t>(id)}, 60);
    int32_t running = 0;
    while (f.Step()) running = std::max(running, f.metrics.running);
    CHECK(running == (blocks == 12 ? 2 : 1));
    CHECK(f.metrics.preemptions == 0);
  }
}

TEST_CASE("max_utilization preempts when only a windowed group is short") {
  ExecutorConfig config = Config(16);
  config.policy = SchedulerPolicy::kMaxUtilization;
  config.pipeline_depth = 1;
  Served f({Full(200), Sliding(8, 8)}, config);
  for (RequestId id = 1; id <= 4; ++id) f.Submit(id, Iota(static_cast<int32_t>(10 * id), 4), 40);
  int32_t steps = 0;
  while (f.Step()) {
    REQUIRE(++steps < 1000);
    if (steps != 20) continue;
    f.model.Reset();
    f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
    REQUIRE(f.engine.CheckIntegrity() == "");
  }
  CHECK(f.metrics.preemptions > 0);
  std::vector<std::vector<int32_t>> tokens(5);
  for (const Event& e : f.engine.TakeEvents()) {
    tokens[e.request].insert(tokens[e.request].end(), e.tokens.begin(), e.tokens.end());
  }
  for (int32_t id = 1; id <= 4; ++id) {
    REQUIRE(tokens[id].size() == 40);
    for (int32_t i = 0; i < 40; ++i) CHECK(tokens[id][i] == 10 * id + i % 4);
  }
}

TEST_CASE("window cache: priorities, their end, and twins") {
  WindowCache cache(Sliding(4, 3), kBlock);
  WindowSpan span;
  cache.Grow(3, 0, &span);
  const BlockHash a{1, 1}, b{2, 2};
  cache.Store(0, a, {80, 1000}, span);
  cache.Store(1, b, {}, span);
  cache.Store(2, b, {}, span);  // a twin: stays its sequence's own
  CHECK(cache.Find(b) == span.blocks[1]);
  cache.ReleaseBelow(3, &span);
  CHECK(cache.num_cached() == 2);
  CHECK(cache.num_free() == 1);
  CHECK(span.blocks == Ids(3, kNoBlock));
  TimeNs now = 0;
  SUBCASE("before the end of the priority") { now = 999; }
  SUBCASE("after it") { now = 1000; }
  cache.Grow(5, now, &span);
  CHECK((cache.Find(a) == kNoBlock) == (now == 1000));
  CHECK((cache.Find(b) == kNoBlock) == (now == 999));
  REQUIRE(cache.CheckIntegrity({&span}) == "");
}

TEST_CASE("groups that cannot serve are refused with the numbers") {
  WorkerInfo worker;
  worker.max_seq_len = 400;
  worker.tokens_per_block = kBlock;
  const auto check = [&](std::vector<KvGroup> groups) {
    worker.kv_groups = std::move(groups);
    return CheckKvGroups(worker, Config(16)).message();
  };
  CHECK(check({Full(10), Sliding(8, 8)}) == "");
  CHECK(check({Full(10), Sliding(8, 7)}) ==
        "KV group 1 (sliding, window 8) has 7 blocks of 4 tokens; one sequence in steps of 16 "
        "tokens (max_num_tokens) needs 8");
  CHECK(check({Full(7), Sliding(8, 7)}) == "");  // no sequence is longer than the full group
  CHECK(check({Sliding(8, 8), Chunked(12, 8)}).find("KV group 1 (chunked, window 12)") == 0);
  CHECK(check({Sliding(8, 8), Full(9)}).find("only the first group may be full") !=
        std::string::npos);
  CHECK(check({}) == "the worker has no KV groups");
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  CHECK(check({Full(10), Sliding(kMost, 7)}).find("needs 10") != std::string::npos);
  worker.tokens_per_block = 1;
  CHECK(check({Sliding(kMost, 8)}).find("needs 400") != std::string::npos);
  worker.tokens_per_block = kBlock;
  KvGroup heavy = Full(10);
  heavy.bytes_per_block = std::numeric_limits<int64_t>::max() / 10;
  CHECK(check({heavy}) == "");
  CHECK(check({heavy, Sliding(8, 8)}).find("more than can be counted") != std::string::npos);
  CHECK(CanReplace({Full(7), Sliding(8, 7)}, {Full(8), Sliding(8, 7)}));
  CHECK(!CanReplace({Full(7), Sliding(8, 7)}, {Full(7), Sliding(8, 6)}));
  CHECK(!CanReplace({Full(7), Sliding(8, 7)}, {Full(7), Chunked(8, 7)}));
  CHECK(!CanReplace({Full(7)}, {Full(7), Sliding(8, 7)}));
}

TEST_CASE("a model of windows alone has no limit on lengths but its own") {
  Served f({Sliding(8, 8)}, Config(16));
  CHECK(f.engine.limits().kv_capacity_tokens == std::numeric_limits<int64_t>::max());
  CHECK(f.Run(1, Iota(0, 100), 300) == 0);
  CHECK(f.metrics.kv_blocks_total == 8);
}

}  // namespace slipstream
