// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// Host work per step, without a model: scheduling, KV bookkeeping, building the plan's arrays and
// encoding them as the message to the worker; and separately what applying the answer costs.
//   cmake --preset release -DSLIPSTREAM_BUILD_BENCHMARKS=ON && cmake --build --preset release
//   build/release/bench_scheduler_step
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "executor/engine.h"
#include "worker_link/step_codec.h"

namespace slipstream {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

void Answer(const StepPlan& plan, StepResult* r) {
  const size_t n = plan.num_seqs();
  r->step_id = plan.step_id;
  r->slot = plan.slot;
  r->status.assign(n, kSeqOk);
  r->logprob_width.assign(n, 0);
  r->context_rows.assign(n, 0);
  r->generation_rows.assign(n, 0);
  r->num_tokens.clear();
  r->tokens.clear();
  for (size_t i = 0; i < n; ++i) {
    r->num_tokens.push_back(plan.flags[i] & kSeqSample);
    if (plan.flags[i] & kSeqSample) r->tokens.push_back(static_cast<int32_t>(i % 1000));
  }
}

struct Quantiles {
  double median, p99, max;
};

Quantiles Of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values[values.size() * 99 / 100], values.back()};
}

void Print(const char* what, const std::vector<double>& values) {
  const Quantiles q = Of(values);
  std::printf("%-54s median %8.1f us   p99 %8.1f us   max %8.1f us   (%zu)\n", what, q.median,
              q.p99, q.max, values.size());
}

WorkerInfo Info(int32_t num_blocks, int32_t window = 0) {
  WorkerInfo info;
  info.vocab_size = 32000;
  info.max_seq_len = 16384;
  info.kv_groups = {{KvKind::kFull, 0, num_blocks, 0}};
  if (window > 0) info.kv_groups.push_back({KvKind::kSliding, window, num_blocks, 0});
  info.tokens_per_block = 32;
  return info;
}

RequestSpec Spec(int32_t prompt_len, int32_t max_new, int32_t first) {
  RequestSpec spec;
  for (int32_t i = 0; i < prompt_len; ++i) spec.prompt.push_back((first + i * 7) % 32000);
  spec.max_new_tokens = max_new;
  spec.streaming = true;
  return spec;
}

Request Create(const Engine& engine, RequestSpec spec) {
  auto request = Request::Create(std::move(spec), engine.limits());
  if (!request.ok()) std::abort();
  return std::move(*request);
}

// What the executor's thread does for a new request.
void Submit(Engine* engine, RequestId id, Request request) {
  if (!engine->Submit(id, std::move(request), 1).ok()) std::abort();
}

// `window`: of a second KV group; 0 = there is none.
void Decode(int32_t num_seqs, int32_t window) {
  ExecutorConfig config;
  config.max_num_seqs = num_seqs;
  config.max_num_tokens = 8192;
  config.max_queue_requests = 0;
  Engine engine(config, Info(65536, window), nullptr);
  for (int32_t i = 0; i < num_seqs; ++i)
    Submit(&engine, i + 1, Create(engine, Spec(128, 2000, i * 131)));
  StepPlan plan;
  StepResult result;
  std::vector<double> build, apply;
  StepEncoder encoder;
  TimeNs now = 1;
  for (int step = 0; step < 1500; ++step) {
    auto start = Clock::now();
    if (!engine.BuildStep(++now, &plan) || encoder.Encode(plan).empty()) std::abort();
    const double built = MicrosSince(start);
    Answer(plan, &result);
    start = Clock::now();
    if (!engine.OnResult(result, ++now).ok()) std::abort();
    const auto events = engine.TakeEvents();
    const double applied = MicrosSince(start);
    if (static_cast<int32_t>(plan.num_seqs()) == num_seqs && plan.admitted.empty()) {
      build.push_back(built);
      apply.push_back(applied);
    }
  }
  char name[64];
  std::snprintf(name, sizeof name, "build and encode a step, %d decoding%s", num_seqs,
                window > 0 ? ", windows" : "");
  Print(name, build);
  std::snprintf(name, sizeof name, "apply its answer, %d events", num_seqs);
  Print(name, apply);
}

void CachedBurst(int32_t num_seqs, int32_t prompt_len) {
  ExecutorConfig config;
  config.max_num_seqs = num_seqs;
  config.max_num_tokens = 8192;
  config.max_queue_requests = 0;
  config.pipeline_depth = 1;
  Engine engine(config, Info(200000), nullptr);
  StepPlan plan;
  StepResult result;
  StepEncoder encoder;
  TimeNs now = 1;
  std::vector<double> build, submit;
  for (int round = 0; round < 10; ++round) {
    for (int32_t i = 0; i < num_seqs; ++i) {
      Request request = Create(engine, Spec(prompt_len, 8, 0));
      const auto start = Clock::now();
      Submit(&engine, round * num_seqs + i + 1, std::move(request));
      if (round > 0) submit.push_back(MicrosSince(start));
    }
    while (!engine.idle()) {
      const auto start = Clock::now();
      if (!engine.BuildStep(++now, &plan) || encoder.Encode(plan).empty()) std::abort();
      if (round > 0) build.push_back(MicrosSince(start));
      Answer(plan, &result);
      if (!engine.OnResult(result, ++now).ok()) std::abort();
      engine.TakeEvents();
    }
  }
  char name[64];
  std::snprintf(name, sizeof name, "build and encode, burst of %d cached %d-token prompts",
                num_seqs, prompt_len);
  Print(name, build);
  std::snprintf(name, sizeof name, "submit one of them");
  Print(name, submit);
}

}  // namespace
}  // namespace slipstream

int main() {
  slipstream::Decode(64, 0);
  slipstream::Decode(256, 0);
  slipstream::Decode(512, 0);
  slipstream::Decode(256, 512);
  slipstream::CachedBurst(512, 8192);
  return 0;
}
