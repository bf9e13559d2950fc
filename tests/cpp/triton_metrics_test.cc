// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <chrono>
#include <cmath>

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "triton/histogram_replay.h"
#include "triton/metrics.h"
#include "triton_host.h"

namespace slipstream::triton {
namespace {

Histogram Replayed(const Histogram& before, const Histogram& after) {
  Histogram result(after.bounds);
  for (const Observations& seen : ReplayHistogram(before, after)) {
    for (uint64_t i = 0; i < seen.count; ++i) result.Observe(seen.value);
  }
  return result;
}

TEST_CASE("metrics: a replayed histogram has the same buckets and the same sum") {
  std::mt19937 random(7);
  const std::vector<double> bounds = {0.001, 0.01, 0.1, 1, 10};
  for (int round = 0; round < 200; ++round) {
    std::lognormal_distribution<double> draw(-4 + round % 5, 2.5);
    Histogram before(bounds);
    for (int i = 0; i < round; ++i) before.Observe(draw(random));
    Histogram after = before;
    for (int i = 0; i < 1 + round / 4; ++i) after.Observe(draw(random));
    const Histogram replayed = Replayed(before, after);
    for (size_t i = 0; i < after.counts.size(); ++i) {
      CHECK(replayed.counts[i] == after.counts[i] - before.counts[i]);
    }
    CHECK(replayed.sum == doctest::Approx(after.sum - before.sum).epsilon(1e-3));
  }
  CHECK(ReplayHistogram(Histogram(), Histogram(bounds)).empty());
}

TEST_CASE("metrics: counts of tokens are replayed as whole numbers with exactly their sum") {
  std::mt19937 random(7);
  const Histogram before({10, 50, 100, 500, 1000});
  for (int round = 0; round < 500; ++round) {
    Histogram after = before;
    const uint32_t most = round % 2 == 0 ? 60 : 5000;
    for (uint32_t i = random() % 40; i > 0; --i) after.Observe(random() % most);
    const auto seen = ReplayHistogram(before, after);
    for (const Observations& one : seen) CHECK(std::floor(one.value) == one.value);
    const Histogram replayed = Replayed(before, after);
    CHECK(replayed.counts == after.counts);
    CHECK(replayed.sum == after.sum);
  }
}

TEST_CASE(
    "metrics: the nv_trt_llm samples are exactly those of the interface, each with a log key") {
  const std::map<std::string, std::pair<std::string, std::set<std::string>>> expected = {
      {"nv_trt_llm_request_metrics",
       {"request_type", {"active", "max", "scheduled", "context", "waiting"}}},
      {"nv_trt_llm_runtime_memory_metrics", {"memory_type", {"cpu", "gpu", "pinned"}}},
      {"nv_trt_llm_kv_cache_block_metrics",
       {"kv_cache_block_type", {"max", "free", "used", "tokens_per", "reused", "fraction"}}},
      {"nv_trt_llm_disaggregated_serving_metrics",
       {"disaggregated_serving_type", {"kv_cache_transfer_ms", "request_count"}}},
      {"nv_trt_llm_inflight_batcher_metrics",
       {"inflight_batcher_specific_metric",
        {"total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"}}},
      {"nv_trt_llm_general_metrics", {"general_type", {"timestamp", "iteration_counter"}}},
  };
  std::map<std::string, std::pair<std::string, std::set<std::string>>> found;
  size_t samples = 0;
  for (const MetricRow& row : LlmMetrics().rows) {
    const bool theirs = std::string(row.family).rfind("nv_trt_llm_", 0) == 0;
    CHECK(theirs == (row.log_key[0] != '\0'));
    if (!theirs) continue;
    ++samples;
    found[row.family].first = row.label;
    found[row.family].second.insert(row.label_value);
  }
  CHECK(found == expected);
  MetricsView view;
  view.snapshot.running = 3;
  const auto line = nlohmann::json::parse(MetricsLogLine(view));
  CHECK(line.size() == samples);
  CHECK(line["Active Request Count"] == 3);
}

MetricsView EmptyView() {
  MetricsView view;
  view.snapshot.time_to_first_token_s = Histogram({0.1, 1});
  view.snapshot.inter_token_latency_s = Histogram({0.1, 1});
  view.snapshot.queue_time_s = Histogram({0.1, 1});
  view.snapshot.e2e_latency_s = Histogram({0.1, 1});
  view.snapshot.input_tokens = Histogram({10, 50});
  view.snapshot.output_tokens = Histogram({10, 50});
  return view;
}

TEST_CASE("metrics: gauges, counters and histograms follow the snapshots, and go with the model") {
  MetricsView view = EmptyView();
  view.health = Health::kReady;
  view.snapshot.input_tokens.Observe(20);
  std::mutex mutex;
  const auto before = host::CountAliveMetrics();
  {
    const auto reporter = MetricsReporter::Create("snapshots", 1, 1, LlmMetrics(), [&] {
      const std::lock_guard<std::mutex> lock(mutex);
      return view;
    });
    const std::lock_guard<std::mutex> lock(mutex);
    view.snapshot.running = 5;
    view.snapshot.kv_hit_tokens = 64;
    view.snapshot.kv_blocks_cached = 4;
    view.snapshot.tokens_per_block = 32;
    view.snapshot.finished[static_cast<size_t>(FinishReason::kLength)] = 2;
    view.snapshot.input_tokens.Observe(30);
    view.snapshot.time_to_first_token_s.Observe(0.25);
  }
  auto samples = host::Metrics("snapshots");
  CHECK(samples["slipstream_ready"] == 1);
  CHECK(samples["slipstream_running"] == 5);
  CHECK(samples["nv_trt_llm_request_metrics{request_type=\"active\"}"] == 5);
  CHECK(samples["slipstream_kv_hit_tokens_total"] == 64);
  CHECK(samples["slipstream_kv_tokens{state=\"cached\"}"] == 128);
  CHECK(samples["slipstream_requests_finished_total{reason=\"length\"}"] == 2);
  const std::string input = "nv_llm_input_token_len{response_metric_type=\"total_input_tokens\"}";
  CHECK(samples[input + "_count"] == 2);
  CHECK(samples[input + "_sum"] == doctest::Approx(50));
  CHECK(samples["slipstream_time_to_first_token_seconds_sum"] == doctest::Approx(0.25));
  CHECK(host::CountAliveMetrics().metrics == before.metrics);
  CHECK(host::CountAliveMetrics().families == before.families);
}

std::shared_ptr<const ExpertLoad> Load(std::vector<int32_t> layers, int32_t num_experts,
                                       std::vector<uint64_t> tokens) {
  tokens.resize(layers.size() * static_cast<size_t>(num_experts));
  return std::make_shared<ExpertLoad>(
      ExpertLoad{std::move(layers), num_experts, std::move(tokens)});
}

TEST_CASE("metrics: experts show their tokens and how uneven they are") {
  const auto before = host::CountAliveMetrics();
  {
    auto metrics =
        ExpertMetrics::Create({{"model", "mixture"}, {"version", "1"}}, *Load({0, 3}, 2, {}));
    REQUIRE_MESSAGE(metrics.ok(), metrics.status().message());
    auto samples = host::Metrics("mixture");
    CHECK(samples["slipstream_moe_expert_imbalance{layer=\"3\"}"] == 1);
    const auto first = Load({0, 3}, 2, {3, 1, 5, 5});
    (*metrics)->Show(nullptr, *first, true);
    (*metrics)->Show(first.get(), *Load({0, 3}, 2, {3, 1, 20, 5}), true);
    CHECK((*metrics)->Fits(*first));
    CHECK_FALSE((*metrics)->Fits(*Load({0, 1}, 2, {})));
    samples = host::Metrics("mixture");
    CHECK(samples["slipstream_moe_expert_imbalance{layer=\"0\"}"] == 1.5);
    CHECK(samples["slipstream_moe_expert_imbalance{layer=\"3\"}"] == 1.6);
    CHECK(samples["slipstream_moe_expert_tokens_total{layer=\"0\",expert=\"0\"}"] == 3);
    CHECK(samples["slipstream_moe_expert_tokens_total{layer=\"3\",expert=\"0\"}"] == 20);
    CHECK(samples.size() == 2 + 4);
  }
  CHECK(host::CountAliveMetrics().metrics == before.metrics);
  CHECK(host::CountAliveMetrics().families == before.families);
}

TEST_CASE("metrics: of very many experts only the layers are shown") {
  const auto load = Load({0, 1, 2}, 1024, {7});
  auto metrics = ExpertMetrics::Create({{"model", "many"}, {"version", "1"}}, *load);
  REQUIRE_MESSAGE(metrics.ok(), metrics.status().message());
  (*metrics)->Show(nullptr, *load, true);
  const auto samples = host::Metrics("many");
  CHECK(samples.size() == 3);
  CHECK(samples.at("slipstream_moe_expert_imbalance{layer=\"0\"}") == 1024);
  CHECK(samples.at("slipstream_moe_expert_imbalance{layer=\"1\"}") == 1);
}

TEST_CASE("metrics: a reloaded model shows its own beside the old one that drains") {
  const auto before = host::CountAliveMetrics();
  const auto reporter = [](int32_t running, uint64_t steps) {
    return MetricsReporter::Create("reloaded", 1, 1, LlmMetrics(), [=] {
      MetricsView view = EmptyView();
      view.snapshot.running = running;
      view.snapshot.steps = steps;
      return view;
    });
  };
  auto old = reporter(1, 10);
  auto next = reporter(2, 20);
  CHECK(host::CountAliveMetrics().metrics ==
        before.metrics +
            static_cast<int>(LlmMetrics().rows.size() + LlmMetrics().histograms.size()));
  const auto running = [] { return host::Metrics("reloaded")["slipstream_running"]; };
  for (int i = 0; i < 20000 && running() != 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  old.reset();
  CHECK(running() == 2);
  auto failed = reporter(3, 30);
  failed.reset();  // the newest goes first: the other takes the gauges back
  next.reset();
  auto samples = host::Metrics("reloaded");
  CHECK(samples["slipstream_running"] == 2);
  CHECK(samples["slipstream_steps_total"] == 60);
  CHECK(host::CountAliveMetrics().metrics == before.metrics);
  CHECK(host::CountAliveMetrics().families == before.families);
  CHECK(host::CountAliveMetrics().orphaned == 0);
}

}  // namespace
}  // namespace slipstream::triton
