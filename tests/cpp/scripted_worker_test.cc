// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/scripted_worker.h"

#include <doctest/doctest.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "worker_link/channel.h"

namespace slipstream {
namespace {

constexpr int32_t kBlock = 4;

ScriptedWorkerConfig SmallConfig() {
  ScriptedWorkerConfig config;
  config.vocab_size = 100;
  config.num_blocks = 8;
  config.tokens_per_block = kBlock;
  config.max_seq_len = 24;
  return config;
}

// Builds plans by hand, one sequence after the other.
struct PlanBuilder {
  StepPlan plan;

  explicit PlanBuilder(uint64_t step_id) { plan.step_id = step_id; }

  PlanBuilder& Admit(uint32_t slot, const std::vector<int32_t>& history, int32_t prompt_len = -1,
                     int32_t num_logprobs = -1, uint32_t flags = 0, int32_t min_tokens = 0) {
    AdmitRecord record{};
    record.slot = slot;
    record.flags = kAdmitHistory | flags;
    record.num_logprobs = num_logprobs;
    record.min_tokens = min_tokens;
    record.prompt_len = prompt_len < 0 ? static_cast<int32_t>(history.size()) : prompt_len;
    record.history_offset = static_cast<uint32_t>(plan.aux.size());
    record.history_len = static_cast<uint32_t>(history.size());
    plan.aux.insert(plan.aux.end(), history.begin(), history.end());
    plan.admitted.push_back(record);
    return *this;
  }

  PlanBuilder& Run(uint32_t slot, uint32_t first, const std::vector<int32_t>& tokens,
                   const std::vector<int32_t>& blocks, uint32_t flags = kSeqSample) {
    plan.slot.push_back(slot);
    plan.num_tokens.push_back(static_cast<uint32_t>(tokens.size()));
    plan.first_position.push_back(first);
    plan.num_new_blocks.push_back(static_cast<uint32_t>(blocks.size()));
    plan.flags.push_back(flags);
    plan.token_ids.insert(plan.token_ids.end(), tokens.begin(), tokens.end());
    plan.new_block_ids.insert(plan.new_block_ids.end(), blocks.begin(), blocks.end());
    return *this;
  }

  // The blocks of the next group, for the one sequence of the plan.
  PlanBuilder& NextGroup(const std::vector<int32_t>& blocks) {
    ++plan.num_groups;
    plan.new_block_ids.insert(plan.new_block_ids.end(), blocks.begin(), blocks.end());
    return *this;
  }

  PlanBuilder& Retire(uint32_t slot) {
    plan.retired.push_back(slot);
    return *this;
  }

  PlanBuilder& Copy(int32_t src, int32_t dst, int32_t num_tokens) {
    plan.copies.push_back({src, dst, num_tokens});
    return *this;
  }
};

std::vector<int32_t> Tokens(ScriptedModel* model, const PlanBuilder& builder) {
  auto result = model->Run(builder.plan);
  REQUIRE_MESSAGE(result.ok(), result.status().message());
  return result->tokens;
}

void CheckBroken(ScriptedModel* model, const PlanBuilder& builder, const std::string& what) {
  const auto result = model->Run(builder.plan);
  REQUIRE_FALSE(result.ok());
  CHECK(result.status().message() == "the plan of step " + std::to_string(builder.plan.step_id) +
                                         " breaks the contract: " + what);
}

bool Readable(int fd, int timeout_ms) {
  pollfd poll_fd{fd, POLLIN, 0};
  return ::poll(&poll_fd, 1, timeout_ms) == 1;
}

constexpr int kLong = 20000;  // ms; no test waits that long unless it fails

}  // namespace

TEST_CASE("scripted model: emission rules") {
  ScriptedWorkerConfig config = SmallConfig();
  std::vector<int32_t> expected;
  SUBCASE("echo") { expected = {5, 6, 5, 6}; }
  SUBCASE("count") {
    config.emit = EmitRule::kCount;
    config.count_start = 98;
    expected = {98, 99, 0, 1};
  }
  SUBCASE("constant") {
    config.emit = EmitRule::kConstant;
    config.constant_token = 42;
    expected = {42, 42, 42, 42};
  }
  SUBCASE("seeded") {
    config.emit = EmitRule::kSeeded;
    for (int32_t i = 0; i < 4; ++i) expected.push_back(SeededToken(0, i, config.vocab_size));
  }
  SUBCASE("end") {
    config.end_after = 3;
    expected = {5, 6, 2, 6};
  }
  ScriptedModel model(config);
  std::vector<int32_t> got = Tokens(&model, PlanBuilder(1).Admit(0, {5, 6}).Run(0, 0, {5, 6}, {3}));
  got.push_back(Tokens(&model, PlanBuilder(2).Run(0, 2, {kTokenFromSlot}, {})).at(0));
  got.push_back(Tokens(&model, PlanBuilder(3).Run(0, 3, {got[1]}, {})).at(0));
  got.push_back(Tokens(&model, PlanBuilder(4).Run(0, 4, {kTokenFromSlot}, {7})).at(0));
  CHECK(got == expected);
  const ScriptedCounters counters = model.counters();
  CHECK(counters.live_slots == 1);
  CHECK(counters.steps == 4);
  CHECK(counters.tokens == 4);
  CHECK(counters.max_seqs == 1);
}

TEST_CASE("scripted model: seeded tokens are no end ids until min_tokens") {
  ScriptedWorkerConfig config = SmallConfig();
  config.emit = EmitRule::kSeeded;
  const int32_t first = SeededToken(0, 0, config.vocab_size);
  const int32_t second = SeededToken(0, 1, config.vocab_size);
  PlanBuilder begin(1);
  begin.Admit(0, {5, 6}, -1, -1, 0, /*min_tokens=*/1).Run(0, 0, {5, 6}, {3});
  AdmitRecord& record = begin.plan.admitted.back();
  record.end_ids_offset = static_cast<uint32_t>(begin.plan.aux.size());
  record.end_ids_len = 3;
  for (const int32_t id : {first, first + 1, second}) begin.plan.aux.push_back(id);
  ScriptedModel model(config);
  CHECK(Tokens(&model, begin) == std::vector<int32_t>{first + 2});
  CHECK(Tokens(&model, PlanBuilder(2).Run(0, 2, {kTokenFromSlot}, {})) ==
        std::vector<int32_t>{second});
}

TEST_CASE("scripted model: the end waits for min_tokens") {
  ScriptedWorkerConfig config = SmallConfig();
  config.end_after = 1;
  ScriptedModel model(config);
  CHECK(Tokens(&model, PlanBuilder(1).Admit(0, {5, 6}, -1, -1, 0, 1).Run(0, 0, {5, 6}, {0})) ==
        std::vector<int32_t>{5});
  CHECK(Tokens(&model, PlanBuilder(2).Run(0, 2, {kTokenFromSlot}, {})) == std::vector<int32_t>{2});
}

TEST_CASE("scripted model: a chunked prompt, and a sequence that comes back with its tokens") {
  ScriptedModel model(SmallConfig());
  CHECK(
      Tokens(&model,
             PlanBuilder(1).Admit(1, {10, 11, 12, 13, 14, 15}).Run(1, 0, {10, 11, 12, 13}, {0}, 0))
          .empty());
  CHECK(Tokens(&model, PlanBuilder(2).Run(1, 4, {14, 15}, {1})) == std::vector<int32_t>{10});
  // Prompt of 2, then three generated: the next one has the generated index 3.
  CHECK(Tokens(&model, PlanBuilder(3)
                           .Retire(1)
                           .Admit(1, {20, 21, 20, 21, 20}, 2)
                           .Run(1, 0, {20, 21, 20, 21, 20}, {0, 1})) == std::vector<int32_t>{21});
}

TEST_CASE("scripted model: shared prefixes, in the same step and by copy") {
  ScriptedModel model(SmallConfig());
  // Slot 1 attends to block 0, which slot 0 fills in this very step.
  CHECK(Tokens(&model, PlanBuilder(1)
                           .Admit(0, {1, 2, 3, 4, 5})
                           .Admit(1, {1, 2, 3, 4, 6})
                           .Run(0, 0, {1, 2, 3, 4, 5}, {0, 1})
                           .Run(1, 4, {6}, {0, 2})) == std::vector<int32_t>{1, 1});
  // Slot 2 takes two positions of block 0 by copy.
  CHECK(Tokens(&model, PlanBuilder(2).Copy(0, 3, 2).Admit(2, {1, 2, 9}).Run(2, 2, {9}, {3})) ==
        std::vector<int32_t>{1});
}

TEST_CASE("scripted model: no block is shared in a step of single tokens that fills it") {
  ScriptedModel model(SmallConfig());
  Tokens(&model, PlanBuilder(1).Admit(0, {1, 2, 3, 4}).Run(0, 0, {1, 2, 3}, {0}, 0));
  PlanBuilder next(2);
  next.Admit(1, {1, 2, 3, 4, 6}).Run(0, 3, {4}, {}).Run(1, 4, {6}, {0, 2});
  SUBCASE("all single") {
    CheckBroken(&model, next,
                "slot 0 writes to block 0, which slot 1 shares in a step of single tokens");
  }
  SUBCASE("one is not") {
    next.Admit(2, {7, 8}).Run(2, 0, {7, 8}, {3});
    CHECK(Tokens(&model, next).size() == 3);
  }
}

TEST_CASE("scripted model: a cached block with other tokens before it is found out") {
  ScriptedModel model(SmallConfig());
  Tokens(&model, PlanBuilder(1).Admit(0, {1, 2, 3, 4, 5}).Run(0, 0, {1, 2, 3, 4, 5}, {0, 1}));
  CheckBroken(&model, PlanBuilder(2).Admit(1, {1, 9, 3, 4, 6}).Run(1, 4, {6}, {0, 2}),
              "slot 1 starts at position 4, but block 0 does not hold the KV of its tokens at "
              "position 1");
}

TEST_CASE("scripted model: what breaks the contract") {
  ScriptedWorkerConfig config = SmallConfig();
  config.max_num_seqs = 4;
  config.max_num_tokens = 16;
  ScriptedModel model(config);
  // Slot 0 holds blocks 0 (full) and 1 (two of four positions).
  Tokens(&model, PlanBuilder(5).Admit(0, {1, 2, 3, 4, 5, 6}).Run(0, 0, {1, 2, 3, 4, 5, 6}, {0, 1}));
  PlanBuilder next(6);
  std::string what;
  SUBCASE("step ids") {
    next.plan.step_id = 5;
    what = "it follows step 5";
  }
  SUBCASE("not admitted") {
    next.Run(1, 0, {1}, {2});
    what = "slot 1 is scheduled but not admitted";
  }
  SUBCASE("retired twice") {
    next.Retire(0).Retire(0);
    what = "slot 0 is retired but not live";
  }
  SUBCASE("retired, then used") {
    next.Retire(0).Run(0, 6, {kTokenFromSlot}, {});
    what = "slot 0 is scheduled but not admitted";
  }
  SUBCASE("admitted while live") {
    next.Admit(0, {1}).Run(0, 0, {1}, {2});
    what = "slot 0 is admitted while it is live";
  }
  SUBCASE("slot out of range") {
    next.Admit(8, {1}).Run(8, 0, {1}, {2});
    what = "slot 8 is admitted, the limit is 8";
  }
  SUBCASE("too many sequences") {
    for (uint32_t slot = 1; slot <= 5; ++slot) next.Admit(slot, {1}).Run(slot, 0, {1}, {});
    what = "it has 5 sequences, max_num_seqs is 4";
  }
  SUBCASE("scheduled twice") {
    next.Run(0, 6, {kTokenFromSlot}, {}).Run(0, 7, {1}, {});
    what = "slot 0 is scheduled twice";
  }
  SUBCASE("computed again") {
    next.Run(0, 5, {6}, {});
    what = "slot 0 starts at position 5, but stopped at 6";
  }
  SUBCASE("left out") {
    next.Admit(1, {1, 2, 3}).Run(1, 2, {3}, {2});
    what =
        "slot 1 starts at position 2, but block 2 does not hold the KV of its tokens at "
        "position 0";
  }
  SUBCASE("beyond its blocks") {
    next.Admit(1, {1, 2, 3, 4, 5}).Run(1, 0, {1, 2, 3, 4, 5}, {2});
    what = "slot 1 computes positions up to 5, its blocks hold 4";
  }
  SUBCASE("beyond its tokens") {
    next.Run(0, 6, {kTokenFromSlot, 1}, {});
    what = "slot 0 computes positions up to 8 of 7 known tokens";
  }
  SUBCASE("wrong token") {
    next.Run(0, 6, {9}, {});
    what = "slot 0, position 6: token 9 is given, 1 is known";
  }
  SUBCASE("last token of a slot that sampled none") {
    next.Admit(1, {1}).Run(1, 0, {kTokenFromSlot}, {2});
    what = "slot 1, position 0: the slot's last sampled token does not belong there";
  }
  SUBCASE("samples in the middle") {
    next.Admit(1, {1, 2}).Run(1, 0, {1}, {2});
    what = "slot 1 samples after position 0, but 2 tokens are known";
  }
  SUBCASE("block out of range") {
    next.Admit(1, {1}).Run(1, 0, {1}, {8});
    what = "slot 1 gets block 8, the pool has 8";
  }
  SUBCASE("writes to a block in use") {
    next.Admit(1, {1, 2}).Run(1, 0, {1, 2}, {1});
    what = "slot 1 writes to block 1, which slot 0 holds";
  }
  SUBCASE("two writers") {
    next.Admit(1, {1}).Admit(2, {2}).Run(1, 0, {1}, {2}).Run(2, 0, {2}, {2});
    what = "slot 1 writes to block 2, which slot 2 shares before it is full";
  }
  SUBCASE("two writers of a full block") {
    next.Admit(1, {1, 2, 3, 4}).Admit(2, {1, 2, 3, 4});
    next.Run(1, 0, {1, 2, 3, 4}, {2}).Run(2, 0, {1, 2, 3, 4}, {2});
    what = "slot 2 writes to block 2, and so does slot 1";
  }
  SUBCASE("copy out of range") {
    next.Copy(0, 9, 1).Run(0, 6, {kTokenFromSlot}, {});
    what = "the copy of block 0 to 9 leaves the pool of 8";
  }
  SUBCASE("copy too long") {
    next.Copy(0, 2, 5).Run(0, 6, {kTokenFromSlot}, {});
    what = "the copy of block 0 to 2 has 5 positions, a block 4";
  }
  SUBCASE("copy over a block in use") {
    next.Copy(0, 1, 2).Run(0, 6, {kTokenFromSlot}, {});
    what = "the copy of block 0 to 1 overwrites a block in use";
  }
  SUBCASE("no history") {
    next.Admit(1, {1}).Run(1, 0, {1}, {2});
    next.plan.admitted[0].flags = 0;
    what = "slot 1 is admitted with no history";
  }
  SUBCASE("aux out of range") {
    next.Admit(1, {1}).Run(1, 0, {1}, {2});
    next.plan.admitted[0].bias_offset = 3;
    what = "slot 1 is admitted with bias that ends at 3 of 1 aux elements";
  }
  SUBCASE("token outside the vocabulary") {
    next.Admit(1, {100}).Run(1, 0, {100}, {2});
    what = "slot 1 is admitted with token id 100 at position 0";
  }
  SUBCASE("too long a sequence") {
    next.Admit(1, std::vector<int32_t>(25, 1)).Run(1, 0, {1}, {2}, 0);
    what = "slot 1 is admitted with 25 tokens, max_seq_len is 24";
  }
  SUBCASE("too many tokens in a step") {
    next.Admit(1, std::vector<int32_t>(17, 1));
    next.Run(1, 0, std::vector<int32_t>(17, 1), {2, 3, 4, 5, 6});
    what = "it has 17 tokens, max_num_tokens is 16";
  }
  SUBCASE("arrays that do not add up") {
    next.Run(0, 6, {kTokenFromSlot}, {});
    next.plan.token_ids.push_back(1);
    what = "it has 2 tokens and 0 new blocks, its sequences 1 and 0";
  }
  CheckBroken(&model, next, what);
  model.Reset();
  CHECK(model.counters().live_slots == 0);
  CHECK(Tokens(&model, PlanBuilder(1).Admit(0, {7}).Run(0, 0, {7}, {0})) ==
        std::vector<int32_t>{7});
}

TEST_CASE("scripted model: a slot that skips ahead can be given the block that it leaves behind") {
  ScriptedWorkerConfig config = SmallConfig();
  config.kv_groups = {{KvKind::kSliding, 3, 8, 0}};
  ScriptedModel model(config);
  const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  const std::vector<int32_t> first(prompt.begin(), prompt.begin() + 4);
  const std::vector<int32_t> most(prompt.begin(), prompt.begin() + 12);
  Tokens(&model, PlanBuilder(1)
                     .Admit(0, prompt)
                     .Run(0, 0, first, {0}, 0)
                     .Admit(1, prompt)
                     .Run(1, 0, most, {1, 2, 3}, 0));
  // Position 12 sees 10 and later, which slot 1 computed: blocks 0 and 1 of the table are not held.
  Tokens(&model, PlanBuilder(2).Run(0, 12, {13}, {kNoBlock, 3, 0}));
}

TEST_CASE("scripted model: what a window has passed belongs to others, and nothing else") {
  ScriptedWorkerConfig config = SmallConfig();
  config.kv_groups = {{KvKind::kFull, 0, 8, 0}, {KvKind::kSliding, 4, 8, 0}};
  ScriptedModel model(config);
  const std::vector<int32_t> seven = {1, 2, 3, 4, 5, 6, 7};
  Tokens(&model, PlanBuilder(1).Admit(0, seven).Run(0, 0, seven, {0, 1}).NextGroup({0, 1}));
  // Position 7 sees 4 and later: from this step on block 0 of the window is given up.
  CHECK(Tokens(&model, PlanBuilder(2).Admit(1, {9, 9}).Run(1, 0, {9, 9}, {2}).NextGroup({0})) ==
        std::vector<int32_t>{9});
  PlanBuilder next(3);
  std::string what;
  SUBCASE("a block in the window") {
    next.Admit(2, {9}).Run(2, 0, {9}, {3}).NextGroup({1});
    what = "slot 2 writes to block 1 of group 1, which slot 0 holds";
  }
  SUBCASE("the full group gives nothing up") {
    next.Admit(2, {9}).Run(2, 0, {9}, {0}).NextGroup({3});
    what = "slot 2 writes to block 0 of group 0, which slot 0 holds";
  }
  SUBCASE("a reused prefix without what it sees") {
    next.Admit(2, {1, 2, 3, 4, 5}).Run(2, 4, {5}, {0, 3}).NextGroup({0, 3});
    what =
        "slot 2 starts at position 4, but block 0 of group 1 does not hold the KV of its tokens "
        "at position 1";
  }
  SUBCASE("no block where one is seen") {
    next.Admit(2, {1, 2, 3, 4, 5}).Run(2, 4, {5}, {0, 3}).NextGroup({kNoBlock, 3});
    what = "slot 2 gets block -1 of group 1, the pool has 8";
  }
  SUBCASE("a block where none is seen") {
    next.Admit(2, {1, 2, 3, 4, 5, 6, 7, 8}).Run(2, 7, {8}, {0, 1}).NextGroup({4, 1});
    what = "slot 2 gets block 4 of group 1 below its window";
  }
  SUBCASE("a group too few") {
    next.Admit(2, {9}).Run(2, 0, {9}, {3});
    what = "it has 1 KV groups, the model 2";
  }
  CheckBroken(&model, next, what);
}

TEST_CASE("scripted model: log probabilities and logits by their formulas") {
  ScriptedModel model(SmallConfig());
  const auto result = model.Run(PlanBuilder(1)
                                    .Admit(0, {98, 99}, -1, 3, kAdmitGenerationLogits)
                                    .Run(0, 0, {98, 99}, {0}, kSeqSample | kSeqContextLogits)
                                    .plan);
  REQUIRE(result.ok());
  CHECK(result->logprob_width == std::vector<uint32_t>{4});
  CHECK(result->logprob_ids == std::vector<int32_t>{98, 98, 99, 0});
  CHECK(result->logprob_values == std::vector<float>{-0.125f, -0.125f, -0.25f, -0.375f});
  CHECK(result->context_rows == std::vector<uint32_t>{2});
  CHECK(result->generation_rows == std::vector<uint32_t>{1});
  REQUIRE(result->logits.size() == 300);
  CHECK(result->logits[3] == 21 / 64.0f);
  CHECK(result->logits[100 + 3] == 52 / 64.0f);
  CHECK(result->logits[200 + 3] == 52 / 64.0f);
  const auto best = std::max_element(result->logits.begin() + 200, result->logits.end());
  CHECK(best - (result->logits.begin() + 200) == 98);
}

TEST_CASE("scripted config: every fault of it names the key") {
  const auto error = [](const std::string& text) {
    const auto config = ScriptedWorkerConfig::FromJson(text);
    REQUIRE_FALSE(config.ok());
    CHECK(config.status().code() == StatusCode::kInvalidArgument);
    return config.status().message();
  };
  CHECK(error("[1]") == "scripted worker: the configuration is not a JSON object");
  CHECK(error(R"({"stepus": 1})") == "scripted worker: unknown key 'stepus'");
  CHECK(error(R"({"vocab_size": 0})") ==
        "scripted worker: vocab_size is 0, expected an integer between 1 and 2147483647");
  CHECK(error(R"({"step_us": "5"})").find("step_us is \"5\"") != std::string::npos);
  CHECK(error(R"({"kv_groups": [{"kind": "round"}]})") ==
        "scripted worker: kv_groups[0].kind is \"round\", expected \"full\", \"sliding\" or "
        "\"chunked\"");
  CHECK(error(R"({"kv_groups": [{"kind": "sliding", "num_blocks": 4}]})") ==
        "scripted worker: kv_groups[0] needs num_blocks, and a window unless it is full");
  CHECK(error(R"({"kv_groups": [{"blocks": 4}]})") ==
        "scripted worker: unknown key 'kv_groups[0].blocks'");
  CHECK(error(R"({"emit": "sing"})") ==
        "scripted worker: emit is \"sing\", expected \"echo\", \"count\", \"constant\" or "
        "\"seeded\"");
  CHECK(error(R"({"end_ids": [1, -1]})").find("end_ids[1] is -1") != std::string::npos);
  CHECK(error(R"({"end_ids": [32000]})") ==
        "scripted worker: end_ids is 32000, must be below vocab_size 32000");
  CHECK(error(R"({"token_table_file": "/nowhere/at/all"})").find("a readable file") !=
        std::string::npos);
  CHECK(error(R"({"end_ids": [], "end_after": 3})") ==
        "scripted worker: end_after is 3, but end_ids is empty");
  const auto config = ScriptedWorkerConfig::FromJson(
      R"({"emit": "count", "count_start": 3, "step_us": 40000, "end_ids": [7, 8]})");
  REQUIRE(config.ok());
  CHECK(config->emit == EmitRule::kCount);
  CHECK(config->step_us == 40000);
  CHECK(config->end_ids == std::vector<int32_t>{7, 8});
}

TEST_CASE("scripted worker: results in order, and the fd tells exactly when") {
  ScriptedWorker worker(SmallConfig());
  StepResult result;
  std::string why;
  CHECK(worker.fd() == -1);
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kFailed);
  const auto info = worker.Start(nullptr);
  REQUIRE(info.ok());
  CHECK(info->vocab_size == 100);
  CHECK(info->wants_history);
  CHECK_FALSE(Readable(worker.fd(), 0));
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kNone);
  REQUIRE(worker.Send(PlanBuilder(1).Admit(0, {5, 6}).Run(0, 0, {5, 6}, {0}).plan).ok());
  REQUIRE(worker.Send(PlanBuilder(2).Run(0, 2, {kTokenFromSlot}, {}).plan).ok());
  for (const int32_t token : {5, 6}) {
    REQUIRE(Readable(worker.fd(), kLong));
    REQUIRE(worker.Receive(&result, &why) == WorkerPort::Reply::kResult);
    CHECK(result.tokens == std::vector<int32_t>{token});
  }
  CHECK_FALSE(Readable(worker.fd(), 0));
  CHECK(worker.counters().tokens == 2);
  worker.Stop();
  CHECK(worker.fd() == -1);
}

TEST_CASE("scripted worker: a broken plan and scripted faults end it, a start heals it") {
  ScriptedWorkerConfig config = SmallConfig();
  PlanBuilder plan = PlanBuilder(1).Admit(0, {5}).Run(0, 0, {5}, {0});
  std::string expected;
  SUBCASE("contract") {
    plan.plan.new_block_ids[0] = -1;
    expected =
        "the scripted worker failed: the plan of step 1 breaks the contract: slot 0 gets block "
        "-1, the pool has 8";
  }
  SUBCASE("error") {
    config.fail_at_step = 1;
    expected = "the scripted worker failed: scripted failure at step 1";
  }
  SUBCASE("death") {
    config.die_at_step = 1;
    expected = "the scripted worker died: scripted death at step 1";
  }
  ScriptedWorker worker(config);
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(worker.Send(plan.plan).ok());
  REQUIRE(Readable(worker.fd(), kLong));
  StepResult result;
  std::string why;
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kFailed);
  CHECK(why == expected);
  CHECK(Readable(worker.fd(), 0));
  CHECK_FALSE(worker.Send(plan.plan).ok());
  REQUIRE(worker.Start(nullptr).ok());  // fault_count is 1
  CHECK_FALSE(Readable(worker.fd(), 0));
  plan.plan.new_block_ids[0] = 0;
  REQUIRE(worker.Send(plan.plan).ok());
  REQUIRE(Readable(worker.fd(), kLong));
  CHECK(worker.Receive(&result, &why) == WorkerPort::Reply::kResult);
}

TEST_CASE("scripted worker: a stall never answers and can be stopped") {
  ScriptedWorkerConfig config = SmallConfig();
  config.stall_at_step = 1;
  ScriptedWorker worker(config);
  REQUIRE(worker.Start(nullptr).ok());
  REQUIRE(worker.Send(PlanBuilder(1).Admit(0, {5}).Run(0, 0, {5}, {0}).plan).ok());
  CHECK_FALSE(Readable(worker.fd(), 50));
  worker.Stop();
}

TEST_CASE("scripted worker: failing, slow and interrupted starts") {
  ScriptedWorkerConfig config = SmallConfig();
  SUBCASE("fail_starts") {
    config.fail_starts = 2;
    ScriptedWorker worker(config);
    CHECK(worker.Start(nullptr).status().message() == "scripted failure of start 1");
    CHECK(worker.Start(nullptr).status().message() == "scripted failure of start 2");
    CHECK(worker.Start(nullptr).ok());
  }
  SUBCASE("interrupt") {
    config.start_ms = 60000;
    ScriptedWorker worker(config);
    const auto interrupt = [&](double, const std::string&) { worker.Interrupt(); };
    CHECK(worker.Start(interrupt).status().code() == StatusCode::kUnavailable);
  }
}

namespace {

// From sending `steps` steps at once to the last result.
int64_t PacedNs(const ScriptedWorkerConfig& config, int steps) {
  ScriptedWorker worker(config);
  REQUIRE(worker.Start(nullptr).ok());
  std::vector<int32_t> blocks(config.num_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  const int64_t begin_ns = MonotonicNs();
  REQUIRE(worker.Send(PlanBuilder(1).Admit(0, {5}).Run(0, 0, {5}, blocks).plan).ok());
  for (int i = 1; i < steps; ++i) {
    const auto number = static_cast<uint32_t>(i);
    REQUIRE(worker.Send(PlanBuilder(number + 1).Run(0, number, {kTokenFromSlot}, {}).plan).ok());
  }
  StepResult result;
  std::string why;
  for (int i = 1; i <= steps; ++i) {
    REQUIRE(Readable(worker.fd(), kLong));
    REQUIRE(worker.Receive(&result, &why) == WorkerPort::Reply::kResult);
    CHECK(MonotonicNs() - begin_ns >= config.step_us * 1000 * i);
  }
  return MonotonicNs() - begin_ns;
}

}  // namespace

TEST_CASE("scripted worker: steps sent ahead are paced by absolute time") {
  constexpr int kSteps = 200;
  ScriptedWorkerConfig config = SmallConfig();
  config.step_us = 100;
  config.max_seq_len = kSteps + 2;
  config.num_blocks = (kSteps + kBlock - 1) / kBlock;
  // Every wake-up is late, by 50 us and more; that adds up where one sleeps step by step. On a busy
  // machine both take longer, and one of some attempts counts.
  bool kept = false;
  for (int i = 0; i < 50 && !kept; ++i) {
    const int64_t paced_ns = PacedNs(config, kSteps);
    const int64_t begin_ns = MonotonicNs();
    for (int step = 0; step < kSteps; ++step) {
      std::this_thread::sleep_for(std::chrono::microseconds(config.step_us));
    }
    kept = paced_ns < (MonotonicNs() - begin_ns) * 85 / 100;
  }
  CHECK(kept);
}

}  // namespace slipstream
