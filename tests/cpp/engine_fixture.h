// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "executor/engine.h"

namespace slipstream {

// An Engine with a worker that samples the token `next`, driven step by step.
struct EngineFixture {
  static ExecutorConfig DefaultConfig() {
    ExecutorConfig config;
    config.max_num_seqs = 4;
    config.max_num_tokens = 64;
    config.pipeline_depth = 1;
    return config;
  }
  static WorkerInfo Info(int32_t blocks, int32_t block_size) {
    WorkerInfo info;
    info.vocab_size = 100;
    info.max_seq_len = 1000;
    info.kv_groups = {{KvKind::kFull, 0, blocks, 0}};
    info.tokens_per_block = block_size;
    return info;
  }

  explicit EngineFixture(ExecutorConfig config = DefaultConfig(), int32_t blocks = 16,
                         int32_t block_size = 4)
      : engine(config, Info(blocks, block_size), nullptr) {}

  static RequestSpec Spec(std::vector<int32_t> prompt, int32_t max_new) {
    RequestSpec spec;
    spec.prompt = std::move(prompt);
    spec.max_new_tokens = max_new;
    spec.streaming = true;
    return spec;
  }

  Status Submit(RequestId id, RequestSpec spec) {
    auto request = Request::Create(std::move(spec), engine.limits());
    if (!request.ok()) return request.status();
    return engine.Submit(id, std::move(*request), now);
  }

  bool Build() {
    const bool built = engine.BuildStep(++now, &plan);
    REQUIRE(engine.CheckIntegrity() == "");
    return built;
  }

  void Answer(const StepPlan& of, std::vector<uint32_t> status = {}) {
    StepResult r;
    const size_t n = of.num_seqs();
    r.step_id = of.step_id;
    r.slot = of.slot;
    r.status = status.empty() ? std::vector<uint32_t>(n, kSeqOk) : std::move(status);
    r.logprob_width.assign(n, 0);
    r.context_rows.assign(n, 0);
    r.generation_rows.assign(n, 0);
    for (size_t i = 0; i < n; ++i) {
      r.num_tokens.push_back(of.flags[i] & kSeqSample ? 1 : 0);
      if (r.num_tokens.back() == 1) r.tokens.push_back(next);
    }
    const Status applied = engine.OnResult(r, ++now);
    REQUIRE_MESSAGE(applied.ok(), applied.message());
    REQUIRE(engine.CheckIntegrity() == "");
  }

  bool Step() {
    if (!Build()) return false;
    Answer(plan);
    return true;
  }

  MetricsSnapshot Metrics() const {
    MetricsSnapshot m;
    engine.FillMetrics(&m);
    return m;
  }

  Engine engine;
  StepPlan plan;
  TimeNs now = 1000;
  int32_t next = 42;
};

inline std::vector<int32_t> Iota(int32_t first, int32_t count) {
  std::vector<int32_t> v;
  for (int32_t i = 0; i < count; ++i) v.push_back(first + i);
  return v;
}

}  // namespace slipstream
