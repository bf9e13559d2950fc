// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>

#include "engine_fixture.h"

namespace slipstream {

using Ints = std::vector<uint32_t>;

TEST_CASE("a prompt is prefilled once, then one token a step, then one terminal event") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 3)).ok());
  REQUIRE(f.Build());
  CHECK(f.plan.num_tokens == Ints{6});
  CHECK(f.plan.first_position == Ints{0});
  CHECK(f.plan.num_new_blocks == Ints{2});
  CHECK(f.plan.flags == Ints{kSeqSample});
  CHECK(f.plan.admitted.size() == 1);
  f.Answer(f.plan);
  REQUIRE(f.Step());
  CHECK(f.plan.token_ids == std::vector<int32_t>{42});
  CHECK(f.plan.first_position == Ints{6});
  CHECK(f.plan.admitted.empty());
  REQUIRE(f.Step());
  CHECK(!f.Step());
  const auto events = f.engine.TakeEvents();
  REQUIRE(events.size() == 3);
  CHECK(events[2].reason == FinishReason::kLength);
  CHECK(events[2].request_done);
  CHECK(events[2].usage.prompt_tokens == 6);
  CHECK(events[2].usage.completion_tokens == 3);
  CHECK(f.engine.idle());
  CHECK(f.Metrics().kv_blocks_used == 0);
}

TEST_CASE("with two steps in flight the sampled token is fed back on the device") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.pipeline_depth = 2;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 3), 8)).ok());
  REQUIRE(f.Build());
  const StepPlan first = f.plan;
  REQUIRE(f.Build());
  CHECK(f.plan.token_ids == std::vector<int32_t>{kTokenFromSlot});
  CHECK(f.plan.first_position == Ints{3});
  const StepPlan second = f.plan;
  CHECK(!f.Build());  // the pipeline is full
  f.Answer(first);
  f.Answer(second);
  CHECK(f.engine.TakeEvents().size() == 2);
}

TEST_CASE("no step is spent beyond max_new_tokens, however deep the pipeline") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.pipeline_depth = 3;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 3), 1)).ok());
  REQUIRE(f.Build());
  CHECK(!f.Build());
}

TEST_CASE("an end id is not part of the output, and a finished sequence waits for its steps") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.pipeline_depth = 2;
  EngineFixture f(config);
  RequestSpec spec = f.Spec(Iota(0, 3), 8);
  spec.end_ids = {42};
  REQUIRE(f.Submit(1, std::move(spec)).ok());
  REQUIRE(f.Build());
  const StepPlan first = f.plan;
  REQUIRE(f.Build());
  f.Answer(first);
  const auto events = f.engine.TakeEvents();
  REQUIRE(events.size() == 1);
  CHECK(events[0].tokens.empty());
  CHECK(events[0].reason == FinishReason::kStop);
  CHECK(events[0].stop_reason == "42");
  CHECK(events[0].usage.completion_tokens == 1);
  CHECK(f.Metrics().kv_blocks_used == 1);  // step two still names it
  f.Answer(f.plan);
  CHECK(f.Metrics().kv_blocks_used == 0);
  CHECK(f.engine.TakeEvents().empty());
}

TEST_CASE("chunked prefill ends inner chunks at block boundaries and mixes with decodes") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_tokens = 7;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec({90}, 20)).ok());
  REQUIRE(f.Step());
  REQUIRE(f.Submit(2, f.Spec(Iota(0, 13), 2)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == Ints{1, 4});
  CHECK(f.plan.flags == Ints{kSeqSample, 0});
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == Ints{1, 4});
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == Ints{1, 5});
  CHECK(f.plan.flags == Ints{kSeqSample, kSeqSample});
}

TEST_CASE("a cached prefix is reused by block, then by copy of the partial block") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 12), 1)).ok());
  REQUIRE(f.Step());
  auto prompt = Iota(0, 10);
  prompt.push_back(77);
  REQUIRE(f.Submit(2, f.Spec(prompt, 1)).ok());
  REQUIRE(f.Build());
  CHECK(f.plan.first_position == Ints{10});
  CHECK(f.plan.num_tokens == Ints{1});
  REQUIRE(f.plan.copies.size() == 1);
  CHECK(f.plan.copies[0].num_tokens == 2);
  CHECK(f.plan.new_block_ids.size() == 3);
  f.Answer(f.plan);
  const auto events = f.engine.TakeEvents();
  CHECK(events.back().usage.cached_tokens == 10);
}

TEST_CASE("the last prompt token is computed even when all of the prompt is cached") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 8), 1)).ok());
  REQUIRE(f.Step());
  REQUIRE(f.Submit(2, f.Spec(Iota(0, 8), 1)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.first_position == Ints{7});
  CHECK(f.plan.num_tokens == Ints{1});
}

TEST_CASE("prompts that arrive together share their prefix within the same step") {
  EngineFixture f;
  for (RequestId id = 1; id <= 3; ++id) {
    auto prompt = Iota(0, 12);
    prompt.push_back(static_cast<int32_t>(80 + id));
    REQUIRE(f.Submit(id, f.Spec(prompt, 1)).ok());
  }
  REQUIRE(f.Build());
  CHECK(f.plan.num_tokens == Ints{13, 1, 1});
  CHECK(f.plan.first_position == Ints{0, 12, 12});
  CHECK(f.Metrics().kv_hit_tokens == 24);
}

TEST_CASE("a step of single tokens reads no block that it fills") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec({0, 1, 2}, 4)).ok());
  REQUIRE(f.Step());
  // The next step fills the block of 0, 1, 2 and the token that was sampled.
  RequestSpec sharing = f.Spec({0, 1, 2, f.next, 7}, 1);
  SUBCASE("so that a single token behind it waits for the step after") {
    REQUIRE(f.Submit(2, std::move(sharing)).ok());
    REQUIRE(f.Step());
    CHECK(f.plan.first_position == Ints{3});
    REQUIRE(f.Step());
    CHECK(f.plan.first_position == Ints{4, 4});
  }
  SUBCASE("so that a chunk behind it makes it another step") {
    sharing.prompt.push_back(8);
    REQUIRE(f.Submit(2, std::move(sharing)).ok());
    REQUIRE(f.Step());
    CHECK(f.plan.first_position == Ints{3, 4});
    CHECK(f.plan.num_tokens == Ints{1, 2});
  }
  SUBCASE("but a step that has a chunk may") {
    REQUIRE(f.Submit(2, f.Spec({70, 71}, 1)).ok());
    REQUIRE(f.Submit(3, std::move(sharing)).ok());
    REQUIRE(f.Step());
    CHECK(f.plan.first_position == Ints{3, 0, 4});
    CHECK(f.plan.num_tokens == Ints{1, 2, 1});
  }
  SUBCASE("whatever was filled before") {
    REQUIRE(f.Step());
    REQUIRE(f.Submit(2, std::move(sharing)).ok());
    REQUIRE(f.Step());
    CHECK(f.plan.first_position == Ints{4, 4});
  }
}

TEST_CASE("nor does one that is in its prompt, when a single token would be left of it") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_tokens = 3;
  EngineFixture f(config);
  RequestSpec later = f.Spec({0, 1, 2, 3, 4, 5, 6, f.next, 8}, 1);
  later.priority = 1;
  REQUIRE(f.Submit(1, std::move(later)).ok());
  REQUIRE(f.Step());
  REQUIRE(f.Step());
  CHECK(f.plan.first_position == Ints{3});
  CHECK(f.plan.num_tokens == Ints{1});  // up to the end of a block
  REQUIRE(f.Submit(2, f.Spec(Iota(0, 7), 4)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.first_position == Ints{4});
  CHECK(f.plan.num_tokens == Ints{3});
  REQUIRE(f.Step());  // 2 fills the block that 1 comes to
  CHECK(f.plan.first_position == Ints{7, 4});
  CHECK(f.plan.num_tokens == Ints{1, 2});
}

TEST_CASE("a request that reuses cached blocks can ask to keep them longer") {
  EngineFixture f(EngineFixture::DefaultConfig(), /*blocks=*/4, /*block_size=*/4);
  const auto run = [&](RequestId id, std::vector<int32_t> prompt, int32_t priority) {
    RequestSpec spec = f.Spec(std::move(prompt), 1);
    if (priority >= 0) spec.retention.prompt = {{0, -1, priority, -1}};
    REQUIRE(f.Submit(id, std::move(spec)).ok());
    REQUIRE(f.Step());
    return f.engine.TakeEvents().back().usage.cached_tokens;
  };
  run(1, Iota(0, 5), -1);
  run(2, Iota(0, 5), 90);  // reuses the block of 1 and raises its priority
  run(3, Iota(50, 9), -1);
  run(4, Iota(70, 12), -1);  // needs room: the older block would go first but for its priority
  CHECK(run(5, Iota(0, 5), -1) == 4);
}

TEST_CASE("salts keep caches apart") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 8), 1)).ok());
  REQUIRE(f.Step());
  RequestSpec spec = f.Spec(Iota(0, 8), 1);
  spec.cache_salt = 9;
  REQUIRE(f.Submit(2, std::move(spec)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.first_position == Ints{0});
}

TEST_CASE("guaranteed_no_evict admits only what can surely finish") {
  EngineFixture f(EngineFixture::DefaultConfig(), /*blocks=*/6, /*block_size=*/4);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 4), 13)).ok());  // 16 positions: 4 blocks
  REQUIRE(f.Submit(2, f.Spec(Iota(50, 4), 9)).ok());  // 12 positions: 3 blocks
  REQUIRE(f.Step());
  CHECK(f.plan.num_seqs() == 1);
  while (f.Metrics().running > 0 && f.plan.num_seqs() == 1) REQUIRE(f.Step());
  CHECK(f.Metrics().preemptions == 0);
}

TEST_CASE("max_utilization preempts the youngest, which then continues where it was") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.policy = SchedulerPolicy::kMaxUtilization;
  config.enable_prefix_reuse = false;
  EngineFixture f(config, /*blocks=*/4, /*block_size=*/4);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 4), 8)).ok());
  REQUIRE(f.Submit(2, f.Spec(Iota(50, 4), 8)).ok());
  int steps = 0;
  while (f.Step()) REQUIRE(++steps < 40);
  CHECK(f.Metrics().preemptions == 1);
  int32_t tokens = 0;
  for (const Event& e : f.engine.TakeEvents()) tokens += static_cast<int32_t>(e.tokens.size());
  CHECK(tokens == 16);
}

TEST_CASE("a lost worker: everything live is computed again from its tokens") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  REQUIRE(f.Step());
  REQUIRE(f.Build());
  f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
  REQUIRE(f.engine.CheckIntegrity() == "");
  REQUIRE(f.Build());
  CHECK(f.plan.token_ids == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 42});
  CHECK(f.plan.first_position == Ints{0});
  CHECK(f.plan.admitted.size() == 1);
  f.Answer(f.plan);
  while (f.Step()) {
  }
  const auto events = f.engine.TakeEvents();
  CHECK(events.back().usage.completion_tokens == 4);
  CHECK(events.size() == 4);
}

// Four requests of so many sequences each, of which the one that holds token 77 kills the worker
// that computes it.
void CheckPoison(int32_t max_restarts, RequestId poisoned, int32_t siblings, int32_t slots) {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_restarts = max_restarts;
  config.max_num_seqs = slots;
  config.pipeline_depth = 2;
  EngineFixture f(config);
  for (RequestId id = 1; id <= 4; ++id) {
    auto prompt = Iota(static_cast<int32_t>(10 * id), 6);
    if (id == poisoned) prompt.back() = 77;
    RequestSpec spec = f.Spec(std::move(prompt), 4);
    spec.num_return_sequences = siblings;
    REQUIRE(f.Submit(id, std::move(spec)).ok());
  }
  int32_t deaths = 0;
  while (f.Build()) {
    const StepPlan first = f.plan;
    const bool second = f.Build();
    const auto deadly = [](const StepPlan& plan) {
      return std::count(plan.token_ids.begin(), plan.token_ids.end(), 77) > 0;
    };
    if (!deadly(first)) f.Answer(first);
    if (deadly(first) || (second && deadly(f.plan))) {
      f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
      REQUIRE(f.engine.CheckIntegrity() == "");
      ++deaths;
      f.engine.BeginTrial();
    } else if (second) {
      f.Answer(f.plan);
    }
  }
  CHECK(deaths == max_restarts + 1);
  std::map<RequestId, std::vector<FinishReason>> ends;
  std::map<RequestId, size_t> tokens;
  for (const Event& event : f.engine.TakeEvents()) {
    tokens[event.request] += event.tokens.size();
    if (event.reason != FinishReason::kNone) ends[event.request].push_back(event.reason);
  }
  for (RequestId id = 1; id <= 4; ++id) {
    const FinishReason end = id == poisoned ? FinishReason::kError : FinishReason::kLength;
    CHECK(tokens[id] == (id == poisoned ? 0 : size_t{4} * siblings));
    CHECK(ends[id] == std::vector<FinishReason>(siblings, end));
  }
  CHECK(f.engine.idle());
}

TEST_CASE("a request that kills every worker is ended; those beside it go on") {
  for (const int32_t max_restarts : {2, 3, 5}) {
    for (RequestId poisoned = 1; poisoned <= 4; ++poisoned) {
      CAPTURE(max_restarts);
      CAPTURE(poisoned);
      CheckPoison(max_restarts, poisoned, /*siblings=*/1, /*slots=*/4);
    }
  }
}

TEST_CASE("the sequences of a request that kills every worker count as one") {
  for (const int32_t max_restarts : {1, 2, 3}) {
    for (const int32_t slots : {1, 2, 3}) {
      CAPTURE(max_restarts);
      CAPTURE(slots);
      CheckPoison(max_restarts, /*poisoned=*/1, /*siblings=*/3, slots);
    }
  }
}

TEST_CASE("a new worker's first step is a trial, with nothing beside it") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.pipeline_depth = 2;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(10, 6), 4)).ok());
  REQUIRE(f.Build());
  f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
  f.engine.BeginTrial();
  REQUIRE(f.Build());
  CHECK(f.engine.in_trial());
  const StepPlan trial = f.plan;
  CHECK(trial.slot == std::vector<uint32_t>{0});
  CHECK(trial.token_ids == std::vector<int32_t>{0});
  CHECK(trial.new_block_ids == std::vector<int32_t>{0});
  CHECK_FALSE(f.Build());
  f.Answer(trial);
  CHECK(f.engine.TakeEvents().empty());
  CHECK(f.Metrics().steps == 0);
  REQUIRE(f.Build());
  CHECK(f.plan.retired == std::vector<uint32_t>{0});
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{6});
  f.Answer(f.plan);
  while (f.Step()) {
  }
  CHECK(f.engine.idle());
  // One that dies of its trial is nobody's fault.
  REQUIRE(f.Submit(2, f.Spec(Iota(10, 6), 4)).ok());
  for (int death = 0; death < 10; ++death) {
    f.engine.BeginTrial();
    REQUIRE(f.Build());
    f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
  }
  f.engine.BeginTrial();
  while (f.Step()) {
  }
  CHECK(f.engine.TakeEvents().back().reason == FinishReason::kLength);
}

TEST_CASE("a death at the last step of a finished sequence keeps no sibling waiting") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_restarts = 2;
  config.max_num_seqs = 1;
  config.pipeline_depth = 2;
  EngineFixture f(config);
  RequestSpec spec = f.Spec(Iota(0, 6), 4);
  spec.num_return_sequences = 2;
  spec.end_ids = {f.next};
  REQUIRE(f.Submit(1, std::move(spec)).ok());
  REQUIRE(f.Build());
  const StepPlan first = f.plan;
  REQUIRE(f.Build());
  f.Answer(first);  // the first sequence ends, and is in flight once more
  f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
  while (f.Step()) {
  }
  CHECK(f.engine.idle());
}

TEST_CASE("a request at every death is ended") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_restarts = 2;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  for (int death = 0; death < 3; ++death) {
    REQUIRE(f.Build());
    f.engine.OnWorkerLost(Status::Internal("gone"), ++f.now);
  }
  const auto events = f.engine.TakeEvents();
  REQUIRE(events.size() == 1);
  CHECK(events[0].reason == FinishReason::kError);
  CHECK(events[0].error.message() == "gone");
  CHECK(f.engine.idle());
}

TEST_CASE("non-finite logits end the one sequence") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 3), 4)).ok());
  REQUIRE(f.Submit(2, f.Spec(Iota(50, 3), 4)).ok());
  REQUIRE(f.Build());
  StepResult r;
  r.step_id = f.plan.step_id;
  r.slot = f.plan.slot;
  r.status = {kSeqNonFinite, kSeqOk};
  r.num_tokens = {0, 1};
  r.tokens = {5};
  r.logprob_width = r.context_rows = r.generation_rows = {0, 0};
  REQUIRE(f.engine.OnResult(r, ++f.now).ok());
  const auto events = f.engine.TakeEvents();
  REQUIRE(events.size() == 2);
  CHECK(events[0].request == 1);
  CHECK(events[0].reason == FinishReason::kError);
  CHECK(events[1].reason == FinishReason::kNone);
}

TEST_CASE("malformed answers are refused") {
  EngineFixture f;
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 3), 4)).ok());
  REQUIRE(f.Build());
  StepResult r;
  r.step_id = f.plan.step_id;
  r.slot = f.plan.slot;
  r.status = {kSeqOk};
  r.num_tokens = {1};
  r.tokens = {100};  // == vocab_size
  r.logprob_width = r.context_rows = r.generation_rows = {0};
  CHECK(f.engine.OnResult(r, ++f.now).message().find("token id 100") != std::string::npos);
  r.tokens = {5};
  r.step_id += 1;
  CHECK(!f.engine.OnResult(r, ++f.now).ok());
}

TEST_CASE("deadlines end queued and running requests") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_seqs = 1;
  EngineFixture f(config);
  for (RequestId id = 1; id <= 2; ++id) {
    RequestSpec spec = f.Spec(Iota(0, 3), 50);
    spec.deadline = 5000;
    REQUIRE(f.Submit(id, std::move(spec)).ok());
  }
  REQUIRE(f.Step());
  CHECK(f.engine.next_deadline() == 5000);
  f.engine.ExpireDeadlines(5000);
  const auto events = f.engine.TakeEvents();
  CHECK(events.size() == 3);
  CHECK(events[1].reason == FinishReason::kDeadline);
  CHECK(events[2].reason == FinishReason::kDeadline);
  CHECK(f.engine.idle());
}

TEST_CASE("a request that has ended leaves no deadline behind") {
  EngineFixture f;
  RequestSpec spec = f.Spec(Iota(0, 3), 1);
  spec.deadline = 5000;
  REQUIRE(f.Submit(1, std::move(spec)).ok());
  REQUIRE(f.Step());
  CHECK(f.engine.idle());
  CHECK(f.engine.next_deadline() == kNever);
}

TEST_CASE("a stop request ends every request with its client id, and only those") {
  EngineFixture f;
  for (RequestId id = 1; id <= 3; ++id) {
    RequestSpec spec = f.Spec(Iota(0, 3), 50);
    spec.client_id = id == 2 ? "other" : "mine";
    REQUIRE(f.Submit(id, std::move(spec)).ok());
  }
  f.engine.FinishByClientId("mine", ++f.now);
  CHECK(f.engine.TakeEvents().size() == 2);
  CHECK(f.engine.live_requests() == 1);
}

TEST_CASE("the queue is bounded in sequences and tokens") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_queue_requests = 2;
  EngineFixture f(config);
  RequestSpec two = f.Spec(Iota(0, 3), 5);
  two.num_return_sequences = 2;
  REQUIRE(f.Submit(1, std::move(two)).ok());
  const Status refused = f.Submit(2, f.Spec(Iota(0, 3), 5));
  CHECK(refused.code() == StatusCode::kUnavailable);
  CHECK(refused.message() ==
        "the queue is full: 2 sequences wait, 1 more would exceed max_queue_requests = 2");
  CHECK(f.Metrics().requests_rejected == 1);
}

TEST_CASE("the queue is bounded in prompt tokens, of every sequence") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_queue_tokens = 10;
  EngineFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 4), 5)).ok());
  RequestSpec two = f.Spec(Iota(0, 3), 5);
  two.num_return_sequences = 2;
  REQUIRE(f.Submit(2, std::move(two)).ok());  // exactly full
  const Status refused = f.Submit(3, f.Spec({1}, 5));
  CHECK(refused.code() == StatusCode::kUnavailable);
  CHECK(refused.message() ==
        "the queue is full: 10 prompt tokens wait, 1 more would exceed max_queue_tokens = 10");
  CHECK(f.Metrics().waiting_tokens == 10);
  REQUIRE(f.Step());
  CHECK(f.Metrics().waiting_tokens == 0);
  CHECK(f.Submit(3, f.Spec({1}, 5)).ok());
}

TEST_CASE("what no queue could hold is the caller's mistake, not overload") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_queue_requests = 2;
  config.max_queue_tokens = 8;
  EngineFixture f(config);
  RequestSpec three = f.Spec({1}, 5);
  three.num_return_sequences = 3;
  Status refused = f.Submit(1, std::move(three));
  CHECK(refused.code() == StatusCode::kInvalidArgument);
  CHECK(refused.message() == "num_return_sequences: 3 sequences exceed max_queue_requests = 2");
  RequestSpec two = f.Spec(Iota(0, 5), 5);
  two.num_return_sequences = 2;
  refused = f.Submit(1, std::move(two));
  CHECK(refused.code() == StatusCode::kInvalidArgument);
  CHECK(refused.message() ==
        "input_ids: 10 prompt tokens (of all num_return_sequences) exceed max_queue_tokens = 8");
  CHECK(f.Submit(1, f.Spec(Iota(0, 8), 5)).ok());
}

TEST_CASE("in a full queue the youngest of the worst class gives way, if it has not begun") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_seqs = 1;
  config.max_queue_tokens = 8;
  config.priority_ageing_ms = 10;
  EngineFixture f(config);
  const auto submit = [&](RequestId id, int32_t tokens, int32_t priority, int32_t n = 1) {
    RequestSpec spec = f.Spec(Iota(0, tokens), 5);
    spec.priority = priority;
    spec.num_return_sequences = n;
    return f.Submit(id, std::move(spec));
  };
  const auto ended = [&] {
    std::vector<RequestId> ids;
    for (const Event& event : f.engine.TakeEvents()) {
      if (event.request_done) ids.push_back(event.request);
    }
    return ids;
  };
  REQUIRE(submit(1, 2, 9).ok());
  REQUIRE(f.Step());  // runs, and gives way to nobody
  ended();
  REQUIRE(submit(2, 2, 5).ok());
  REQUIRE(submit(3, 2, 9).ok());
  REQUIRE(submit(4, 1, 9, 2).ok());
  REQUIRE(submit(5, 2, 5).ok());
  CHECK(submit(6, 1, 9).code() == StatusCode::kUnavailable);
  REQUIRE(submit(7, 3, 4).ok());  // takes the places of 4 and 3
  CHECK(ended() == std::vector<RequestId>{4, 3});
  // 7 and 2 and 5 wait, 7 tokens of 8; only those of class 5 are worse than class 4.
  CHECK(submit(8, 6, 4).code() == StatusCode::kUnavailable);
  CHECK(ended().empty());          // nothing was displaced in vain
  f.now += int64_t{20} * 1000000;  // 2 and 5 now rank 3
  CHECK(submit(9, 2, 4).code() == StatusCode::kUnavailable);
  CHECK(submit(10, 2, 0).ok());
  CHECK(ended() == std::vector<RequestId>{5});
  CHECK(f.Metrics().requests_displaced == 3);
  CHECK(f.Metrics().waiting_tokens == 7);
}

TEST_CASE("priority classes go first; ageing lets every class progress") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_seqs = 1;
  config.priority_ageing_ms = 10;
  EngineFixture f(config);
  RequestSpec low = f.Spec({1, 2}, 1);
  low.priority = 9;
  REQUIRE(f.Submit(1, std::move(low)).ok());
  REQUIRE(f.Submit(2, f.Spec({3, 4}, 1)).ok());
  REQUIRE(f.Step());
  CHECK(f.engine.TakeEvents()[0].request == 2);
  f.now += int64_t{100} * 1000000;
  REQUIRE(f.Submit(3, f.Spec({3, 4}, 1)).ok());
  REQUIRE(f.Step());
  CHECK(f.engine.TakeEvents()[0].request == 1);
}

TEST_CASE("a prompt that has begun takes no budget from a better class, until it has aged") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_tokens = 8;
  config.priority_ageing_ms = 10;
  EngineFixture f(config, /*blocks=*/64);
  RequestSpec low = f.Spec(Iota(1, 40), 1);
  low.priority = 9;
  REQUIRE(f.Submit(1, std::move(low)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{8});
  REQUIRE(f.Submit(2, f.Spec(Iota(50, 6), 1)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{6, 2});  // the better one, then what is left
  CHECK(f.plan.first_position == std::vector<uint32_t>{0, 8});
  CHECK(f.engine.TakeEvents()[0].request == 2);
  f.now += int64_t{100} * 1000000;
  REQUIRE(f.Submit(3, f.Spec(Iota(60, 6), 1)).ok());
  REQUIRE(f.Step());
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{6, 2});  // to the end of a block
  CHECK(f.plan.first_position == std::vector<uint32_t>{10, 0});
}

TEST_CASE("under max_utilization as many of lower classes give way as better ones wait") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.policy = SchedulerPolicy::kMaxUtilization;
  config.pipeline_depth = 2;
  EngineFixture f(config, /*blocks=*/64);
  for (RequestId id = 1; id <= 4; ++id) {
    RequestSpec low = f.Spec({1, 2}, 100);
    low.priority = 9;
    REQUIRE(f.Submit(id, std::move(low)).ok());
  }
  REQUIRE(f.Build());
  StepPlan in_flight = f.plan;
  for (RequestId id = 5; id <= 7; ++id) {
    RequestSpec better = f.Spec({3, 4}, 1);
    better.priority = id == 7 ? 9 : 0;
    REQUIRE(f.Submit(id, std::move(better)).ok());
  }
  REQUIRE(f.Build());  // at once, in spare slots: those that give way are named by a step in flight
  CHECK(f.plan.slot == std::vector<uint32_t>{0, 1, 4, 5});
  CHECK(f.plan.num_tokens == std::vector<uint32_t>{1, 1, 2, 2});
  CHECK(f.plan.retired.empty());
  std::swap(in_flight, f.plan);
  f.Answer(f.plan);
  CHECK(f.Metrics().preemptions == 2);
  REQUIRE(f.Build());  // the two better ones need no further step
  CHECK(f.plan.retired == std::vector<uint32_t>{2, 3});
  CHECK(f.plan.slot == std::vector<uint32_t>{0, 1, 3, 2});
}

TEST_CASE("the place of a sequence that has ended is taken before its last step has answered") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.max_num_seqs = 1;
  config.pipeline_depth = 2;
  EngineFixture f(config);
  RequestSpec stops = f.Spec({1, 2}, 20);
  stops.end_ids = {f.next};
  REQUIRE(f.Submit(1, std::move(stops)).ok());
  REQUIRE(f.Submit(2, f.Spec({3, 4, 5}, 1)).ok());
  REQUIRE(f.Build());
  const StepPlan first = f.plan;
  REQUIRE(f.Build());
  CHECK(f.plan.slot == std::vector<uint32_t>{0});
  f.Answer(first);  // the end id; the second step names it still
  REQUIRE(f.Build());
  CHECK(f.plan.slot == std::vector<uint32_t>{1});
  CHECK(f.plan.retired.empty());
  CHECK(f.Metrics().running == 1);
}

TEST_CASE("under max_utilization as many of lower classes give way as hold the blocks wanted") {
  ExecutorConfig config = EngineFixture::DefaultConfig();
  config.policy = SchedulerPolicy::kMaxUtilization;
  config.pipeline_depth = 2;
  EngineFixture f(config, /*blocks=*/12);
  for (RequestId id = 1; id <= 3; ++id) {
    RequestSpec low = f.Spec(Iota(static_cast<int32_t>(id) * 20, 15), 3);
    low.priority = 9;
    REQUIRE(f.Submit(id, std::move(low)).ok());
  }
  REQUIRE(f.Build());
  StepPlan in_flight = f.plan;
  REQUIRE(f.Submit(4, f.Spec(Iota(1, 18), 1)).ok());  // 5 blocks: two of them must go
  REQUIRE(f.Build());
  std::swap(in_flight, f.plan);
  f.Answer(f.plan);
  f.Answer(in_flight);
  CHECK(f.Metrics().preemptions == 2);
}

TEST_CASE("invalid requests name the field, the value and the limit") {
  EngineFixture f;
  const auto message = [&](RequestSpec spec) { return f.Submit(1, std::move(spec)).message(); };
  CHECK(message(f.Spec({}, 4)).find("input_ids: the prompt is empty") == 0);
  CHECK(message(f.Spec({1}, 0)).find("request_output_len (max_tokens): 0") == 0);
  CHECK(message(f.Spec({100}, 1)).find("input_ids: token id 100 at position 0") == 0);
  CHECK(message(f.Spec(Iota(0, 60), 6)).find("more than the whole KV cache holds (64)") !=
        std::string::npos);
  CHECK(message(f.Spec({1}, 1000)).find("max_seq_len of 1000") != std::string::npos);
  RequestSpec spec = f.Spec({1}, 1);
  spec.sampling.top_p = 1.5f;
  CHECK(message(spec) == "runtime_top_p (top_p): 1.5 is outside [0, 1]");
  spec = f.Spec({1}, 1);
  spec.return_text = true;
  CHECK(f.Submit(1, spec).code() == StatusCode::kUnsupported);
}

}  // namespace slipstream
