// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/workload.h"

#include <algorithm>
#include <sstream>

#include "executor/kv_groups.h"
#include "simulation/dice.h"
#include "worker_link/scripted_model.h"

namespace slipstream::simulation {
namespace {

constexpr TimeNs kMillisecond = 1000000;

KvGroup Full(int32_t num_blocks) { return {KvKind::kFull, 0, num_blocks, 1000}; }
KvGroup Windowed(KvKind kind, int32_t window, int32_t spare) { return {kind, window, spare, 10}; }

// Adds to windowed pools what the Engine asks of them at least.
void FitPools(Workload* w) {
  for (KvGroup& group : w->worker.kv_groups) {
    if (!group.windowed()) continue;
    group.num_blocks += group.WindowBlocks(w->worker.tokens_per_block) + 1 +
                        w->config.max_num_tokens / w->worker.tokens_per_block;
  }
}

void DrawPools(Dice* dice, Workload* w) {
  w->worker.tokens_per_block = dice->Pick({1, 2, 3, 4, 8, 16, 64});
  const int32_t blocks = dice->Chance(0.5) ? dice->Int(2, 12) : dice->Int(2, 100);
  const bool windows = dice->Chance(0.3);
  if (!windows || dice->Chance(0.7)) w->worker.kv_groups.push_back(Full(blocks));
  for (int32_t i = windows ? dice->Int(1, 2) : 0; i > 0; --i) {
    const KvKind kind = dice->Pick({KvKind::kSliding, KvKind::kChunked});
    w->worker.kv_groups.push_back(Windowed(kind, dice->Int(1, 40), dice->Int(0, 6)));
  }
  const KvGroup& first = w->worker.kv_groups.front();
  const int32_t capacity = first.num_blocks * w->worker.tokens_per_block;
  w->worker.max_seq_len = first.windowed() ? dice->Int(4, 120) : dice->Int(2, capacity + 20);
}

void DrawConfig(Dice* dice, ExecutorConfig* c) {
  c->max_num_seqs = dice->Pick({1, 2, 3, 8, 32});
  c->max_num_tokens = std::max(c->max_num_seqs, dice->Pick({1, 2, 5, 16, 64, 512}));
  c->policy = dice->Pick({SchedulerPolicy::kGuaranteedNoEvict, SchedulerPolicy::kMaxUtilization});
  c->enable_chunked_prefill = dice->Chance(0.8);
  c->enable_prefix_reuse = dice->Chance(0.8);
  c->enable_partial_reuse = dice->Chance(0.7);
  c->pipeline_depth = dice->Int(1, 2);
  c->max_queue_requests = dice->Chance(0.1) ? dice->Int(1, 6) : 0;
  c->max_queue_tokens = dice->Chance(0.05) ? dice->Int(1, 200) : 0;
  c->priority_ageing_ms = dice->Pick({0, 1, 20, 5000});
  c->max_restarts = dice->Pick({0, 1, 2, 3, 3, 5});
  c->restart_backoff_ms = dice->Pick({1, 3, 200, 4000});
  c->watchdog_ms = dice->Pick({0, 5, 50, 60000});
}

void DrawTraffic(Dice* dice, const Workload& w, TrafficShape* t) {
  t->max_prompt = std::min(dice->Pick({1, 4, 20, 80}), w.worker.max_seq_len - 1);
  t->max_new = dice->Pick({1, 4, 20, 60});
  t->mean_gap = dice->Pick({TimeNs{0}, kMillisecond / 2, kMillisecond * 5});
  t->burst = dice->Pick({0.0, 0.5, 0.9});
  t->prefixes = dice->Int(0, 3);
  t->follow_up = dice->Pick({0.0, 0.4});
  t->salts = dice->Int(1, 2);
  t->siblings = dice->Pick({1, 1, 3});
  t->stops = dice->Pick({0.0, 0.4});
  t->text = dice->Pick({0.0, 0.6});
  t->logprobs = dice->Pick({0.0, 0.4});
  t->generation_logits = dice->Pick({0.0, 0.0, 0.2});
  t->retention = dice->Pick({0.0, 0.4});
  t->priorities = dice->Pick({0.0, 0.5});
  t->deadlines = dice->Pick({0.0, 0.3});
  t->cancels = dice->Pick({0.0, 0.3});
  t->client_ids = dice->Pick({0.0, 0.5});
  t->whole = dice->Pick({0.0, 0.3});
  t->context_logits = dice->Pick({0.0, 0.2});
  t->oversized = dice->Pick({0.0, 0.1});
}

void DrawFaults(Dice* dice, Faults* f) {
  enum { kCalm, kDeaths, kOneDeadly, kDeadly, kEverything };
  const int32_t kind = dice->Int(kCalm, kEverything);
  f->non_finite = dice->Pick({0.0, 0.0, 0.1});
  if (kind == kDeaths || kind == kEverything) f->death = dice->Pick({0.001, 0.01, 0.1});
  if (kind >= kOneDeadly) {
    f->deadly = dice->Pick({0.05, 0.3});
    f->max_deadly = kind == kOneDeadly ? 1 : dice->Int(1, 10);
  }
  if (kind != kEverything) return;
  f->hang = dice->Pick({0.0, 0.01});
  f->garble = dice->Pick({0.0, 0.01});
  f->failed_start = dice->Pick({0.0, 0.3, 0.8});
}

void DrawDrain(Dice* dice, const Workload& w, Drain* drain) {
  const TimeNs arrivals = w.num_requests * w.traffic.mean_gap + 20 * kMillisecond;
  if (dice->Chance(0.1)) drain->at = dice->Between(1, arrivals);
  if (dice->Chance(0.15)) drain->at_failure = static_cast<uint64_t>(dice->Int(1, 3));
  drain->patience = dice->Pick({TimeNs{0}, 5 * kMillisecond, 500 * kMillisecond, kNever});
}

Workload Scenario(uint64_t seed, SchedulerPolicy policy, int32_t depth, int32_t blocks) {
  Workload w;
  w.seed = seed;
  w.config.policy = policy;
  w.config.pipeline_depth = depth;
  w.config.max_num_seqs = 3;
  w.config.max_num_tokens = 8;
  w.config.priority_ageing_ms = 2;
  w.worker.emit = EmitRule::kSeeded;
  w.worker.vocab_size = 50;
  w.worker.max_seq_len = 100;
  w.worker.tokens_per_block = 4;
  w.worker.kv_groups = {Full(blocks)};
  w.traffic.max_prompt = 14;
  w.traffic.max_new = 12;
  w.traffic.siblings = 2;
  w.traffic.stops = 0.3;
  w.traffic.mean_gap = kMillisecond / 4;
  w.traffic.priorities = 0.3;
  w.traffic.whole = 0.2;
  w.traffic.context_logits = 0.1;
  w.traffic.text = 0.8;
  w.traffic.logprobs = 0.5;
  w.traffic.generation_logits = 0.1;
  w.byte_fallback = seed % 2 == 0;
  w.num_requests = 7;
  return w;
}

}  // namespace

Workload RandomWorkload(uint64_t seed) {
  Dice dice(Mix64(seed, 1));
  Workload w;
  w.seed = seed;
  w.worker.emit = EmitRule::kSeeded;
  w.worker.vocab_size = dice.Pick({4, 30, 200});
  DrawConfig(&dice, &w.config);
  DrawPools(&dice, &w);
  FitPools(&w);
  DrawTraffic(&dice, w, &w.traffic);
  w.num_requests = dice.Int(1, 40);
  w.max_step = dice.Pick({kMillisecond / 10, kMillisecond, 4 * kMillisecond});
  w.byte_fallback = dice.Chance(0.5);
  DrawFaults(&dice, &w.faults);
  DrawDrain(&dice, w, &w.drain);
  return w;
}

std::vector<Workload> SmallScenarios() {
  constexpr auto kNoEvict = SchedulerPolicy::kGuaranteedNoEvict;
  constexpr auto kMax = SchedulerPolicy::kMaxUtilization;
  std::vector<Workload> scenarios = {Scenario(1, kNoEvict, 1, 12), Scenario(2, kNoEvict, 2, 6),
                                     Scenario(3, kMax, 1, 6), Scenario(4, kMax, 2, 7)};
  Workload windows = Scenario(5, kMax, 2, 10);
  windows.worker.kv_groups.push_back(Windowed(KvKind::kSliding, 6, 1));
  scenarios.push_back(windows);
  Workload only_windows = Scenario(6, kNoEvict, 2, 0);
  only_windows.worker.kv_groups = {Windowed(KvKind::kChunked, 8, 2)};
  scenarios.push_back(only_windows);
  Workload unchunked = Scenario(7, kMax, 2, 6);
  unchunked.config.enable_chunked_prefill = false;
  unchunked.config.max_num_tokens = 16;
  scenarios.push_back(unchunked);
  Workload no_reuse = Scenario(8, kNoEvict, 2, 8);
  no_reuse.config.enable_prefix_reuse = false;
  scenarios.push_back(no_reuse);
  for (Workload& w : scenarios) FitPools(&w);
  return scenarios;
}

Workload ServerWorkload(uint64_t seed, int64_t num_requests) {
  Workload w;
  w.seed = seed;
  w.config.policy = SchedulerPolicy::kMaxUtilization;
  w.config.max_num_seqs = 32;
  w.config.max_num_tokens = 256;
  w.config.max_queue_requests = 256;
  w.config.priority_ageing_ms = 50;
  w.worker.emit = EmitRule::kSeeded;
  w.worker.vocab_size = 1000;
  w.worker.max_seq_len = 512;
  w.worker.tokens_per_block = 16;
  w.worker.kv_groups = {Full(256)};
  TrafficShape& t = w.traffic;
  t.max_prompt = 120;
  t.max_new = 24;
  t.mean_gap = kMillisecond;
  t.burst = 0.5;
  t.prefixes = 8;
  t.follow_up = 0.2;
  t.salts = 3;
  t.siblings = 3;
  t.stops = 0.2;
  t.retention = 0.3;
  t.retention_ms = 24 * 3600 * 1000;
  t.priorities = 0.3;
  t.deadlines = 0.1;
  t.max_deadline = 300 * kMillisecond;
  t.cancels = 0.05;
  t.client_ids = 0.05;
  t.whole = 0.2;
  w.num_requests = num_requests;
  w.config.watchdog_ms = 50;
  t.text = 0.3;
  t.logprobs = 0.1;
  w.faults.death = 1e-4;
  w.faults.hang = 5e-5;
  w.faults.garble = 5e-5;
  w.faults.failed_start = 0.2;
  w.faults.deadly = 5e-5;
  w.faults.max_deadly = 1000000;
  w.faults.non_finite = 1e-3;
  return w;
}

std::string Describe(const Workload& w) {
  std::ostringstream text;
  text << w.num_requests << " requests, " << w.config.max_num_seqs << " slots, "
       << w.config.max_num_tokens << " tokens a step, depth " << w.config.pipeline_depth << ", "
       << (w.config.policy == SchedulerPolicy::kMaxUtilization ? "max_utilization"
                                                               : "guaranteed_no_evict")
       << (w.config.enable_chunked_prefill ? "" : ", no chunks")
       << (w.config.enable_prefix_reuse ? "" : ", no reuse") << "; blocks of "
       << w.worker.tokens_per_block << ":";
  for (const KvGroup& group : w.worker.kv_groups) {
    text << " " << group.num_blocks << " " << KvKindName(group.kind);
    if (group.windowed()) text << " " << group.window;
  }
  text << "; max_restarts " << w.config.max_restarts << ", watchdog_ms " << w.config.watchdog_ms;
  return text.str();
}

}  // namespace slipstream::simulation
