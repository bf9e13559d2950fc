// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "triton/metrics.h"

namespace slipstream::triton {
namespace {

constexpr auto kGauge = TRITONSERVER_METRIC_KIND_GAUGE;
constexpr auto kCounter = TRITONSERVER_METRIC_KIND_COUNTER;

// Families of more than one kind of model: of each, what ended there.
constexpr char kRejected[] = "slipstream_requests_rejected_total";
constexpr char kRejectedHelp[] = "Requests refused by admission control";
constexpr char kDisplacedFamily[] = "slipstream_requests_displaced_total";
constexpr char kDisplacedHelp[] =
    "Requests whose place in a full queue went to a better priority class";
constexpr char kFinished[] = "slipstream_requests_finished_total";
constexpr char kFinishedHelp[] = "Finished sequences, by reason";

#define VALUE(expression)                                      \
  [](const MetricsView& view) {                                \
    [[maybe_unused]] const MetricsSnapshot& m = view.snapshot; \
    return static_cast<double>(expression);                    \
  }

// The last step's numbers are stale once nothing runs any more.
void AddTensorRtLlmRows(std::vector<MetricRow>* rows) {
  const auto add = [rows](TRITONSERVER_MetricKind kind, const char* family, const char* help,
                          const char* label) {
    return [=](const char* value, const char* key, std::function<double(const MetricsView&)> read) {
      rows->push_back({kind, family, help, label, value, key, std::move(read)});
    };
  };
  const auto request =
      add(kGauge, "nv_trt_llm_request_metrics", "LLM request metrics", "request_type");
  request("active", "Active Request Count", VALUE(m.running));
  request("max", "Max Request Count", VALUE(m.max_num_seqs));
  request("scheduled", "Scheduled Requests", VALUE(m.running == 0 ? 0 : m.scheduled));
  request("context", "Context Requests", VALUE(m.running == 0 ? 0 : m.context_requests));
  request("waiting", "Waiting Requests", VALUE(m.waiting));
  const auto memory = add(kGauge, "nv_trt_llm_runtime_memory_metrics",
                          "Memory of weights and KV cache in bytes", "memory_type");
  memory("cpu", "Runtime CPU Memory Usage",
         VALUE(view.on_gpu ? 0 : m.kv_bytes + view.weight_bytes));
  memory("gpu", "Runtime GPU Memory Usage",
         VALUE(view.on_gpu ? m.kv_bytes + view.weight_bytes : 0));
  memory("pinned", "Runtime Pinned Memory Usage", VALUE(0));
  const auto kv = add(kGauge, "nv_trt_llm_kv_cache_block_metrics", "KV cache block metrics",
                      "kv_cache_block_type");
  kv("max", "Max KV cache blocks", VALUE(m.kv_blocks_total));
  kv("free", "Free KV cache blocks", VALUE(m.kv_blocks_total - m.kv_blocks_used));
  kv("used", "Used KV cache blocks", VALUE(m.kv_blocks_used));
  kv("tokens_per", "Tokens per KV cache block", VALUE(m.tokens_per_block));
  kv("reused", "Reused KV cache blocks", VALUE(m.kv_reused_blocks));
  kv("fraction", "Fraction used KV cache blocks",
     VALUE(m.kv_blocks_total == 0 ? 0.0
                                  : static_cast<double>(m.kv_blocks_used) / m.kv_blocks_total));
  const auto disaggregated = add(kCounter, "nv_trt_llm_disaggregated_serving_metrics",
                                 "Disaggregated serving metrics", "disaggregated_serving_type");
  disaggregated("kv_cache_transfer_ms", "KV cache transfer time", VALUE(0));
  disaggregated("request_count", "Request count", VALUE(0));
  const auto batcher = add(kGauge, "nv_trt_llm_inflight_batcher_metrics",
                           "In-flight batching metrics", "inflight_batcher_specific_metric");
  batcher("total_context_tokens", "Total Context Tokens",
          VALUE(m.running == 0 ? 0 : m.context_tokens));
  batcher("generation_requests", "Generation Requests",
          VALUE(m.running == 0 ? 0 : m.generation_requests));
  batcher("micro_batch_id", "MicroBatch ID", VALUE(0));
  batcher("paused_requests", "Paused Requests", VALUE(m.preempted));
  const auto general = add(kGauge, "nv_trt_llm_general_metrics", "General metrics", "general_type");
  general("timestamp", "Timestamp", VALUE(view.wall_time_us));
  general("iteration_counter", "Iteration Counter", VALUE(m.steps));
}

void AddOwnGauges(std::vector<MetricRow>* rows) {
  const auto add = [rows](const char* family, const char* help, const char* label,
                          const char* value, std::function<double(const MetricsView&)> read) {
    rows->push_back({kGauge, family, help, label, value, "", std::move(read)});
  };
  add("slipstream_ready", "1 when a token can be served now", "", "",
      VALUE(view.health == Health::kReady ? 1 : 0));
  add("slipstream_running", "Sequences being generated", "", "", VALUE(m.running));
  add("slipstream_waiting", "Sequences in the queue", "", "", VALUE(m.waiting));
  add("slipstream_waiting_tokens", "Prompt tokens in the queue", "", "", VALUE(m.waiting_tokens));
  static constexpr char kTokens[] = "slipstream_kv_tokens";
  static constexpr char kTokensHelp[] = "KV cache capacity in tokens, by use";
  add(kTokens, kTokensHelp, "state", "used", VALUE(int64_t{m.kv_blocks_used} * m.tokens_per_block));
  add(kTokens, kTokensHelp, "state", "cached",
      VALUE(int64_t{m.kv_blocks_cached} * m.tokens_per_block));
  add(kTokens, kTokensHelp, "state", "free", VALUE(int64_t{m.kv_blocks_free} * m.tokens_per_block));
}

void AddOwnCounters(std::vector<MetricRow>* rows) {
  const auto add = [rows](const char* family, const char* help, const char* label,
                          const char* value, std::function<double(const MetricsView&)> read) {
    rows->push_back({kCounter, family, help, label, value, "", std::move(read)});
  };
  add("slipstream_steps_total", "Steps of the model", "", "", VALUE(m.steps));
  add("slipstream_requests_accepted_total", "Requests accepted", "", "",
      VALUE(m.requests_accepted));
  add(kRejected, kRejectedHelp, "", "", VALUE(m.requests_rejected));
  add(kDisplacedFamily, kDisplacedHelp, "", "", VALUE(m.requests_displaced));
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kStopSequence, FinishReason::kLength,
        FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kError}) {
    add(kFinished, kFinishedHelp, "reason", FinishReasonName(reason),
        [reason](const MetricsView& view) {
          return static_cast<double>(view.snapshot.finished[static_cast<size_t>(reason)]);
        });
  }
  add("slipstream_prompt_tokens_total", "Prompt tokens of sequences that started", "", "",
      VALUE(m.prompt_tokens));
  add("slipstream_generated_tokens_total", "Generated tokens", "", "", VALUE(m.generated_tokens));
  add("slipstream_kv_hit_tokens_total", "Prompt tokens whose KV was reused", "", "",
      VALUE(m.kv_hit_tokens));
  add("slipstream_kv_lookup_tokens_total", "Prompt tokens looked up for reuse", "", "",
      VALUE(m.kv_lookup_tokens));
  add("slipstream_kv_evicted_blocks_total", "Cached KV blocks evicted", "", "",
      VALUE(m.kv_evicted_blocks));
  add("slipstream_preemptions_total", "Sequences preempted for lack of KV blocks", "", "",
      VALUE(m.preemptions));
  add("slipstream_worker_restarts_total", "Restarts of the worker", "", "",
      VALUE(m.worker_restarts));
}

std::string WallTime(int64_t us) {
  const auto seconds = static_cast<time_t>(us / 1'000'000);
  tm parts{};
  localtime_r(&seconds, &parts);
  char date[32];
  strftime(date, sizeof(date), "%m-%d-%Y %H:%M:%S", &parts);
  char text[48];
  snprintf(text, sizeof(text), "%s.%06d", date, static_cast<int>(us % 1'000'000));
  return text;
}

}  // namespace

const MetricTables& LlmMetrics() {
  static const MetricTables tables = [] {
    MetricTables all;
    AddTensorRtLlmRows(&all.rows);
    AddOwnGauges(&all.rows);
    AddOwnCounters(&all.rows);
    all.histograms = {
        {"slipstream_time_to_first_token_seconds", "Arrival to first token", "", "",
         &MetricsSnapshot::time_to_first_token_s},
        {"slipstream_inter_token_latency_seconds", "Between two tokens of a sequence", "", "",
         &MetricsSnapshot::inter_token_latency_s},
        {"slipstream_queue_time_seconds", "Arrival to first scheduling", "", "",
         &MetricsSnapshot::queue_time_s},
        {"slipstream_request_latency_seconds", "Arrival to last token", "", "",
         &MetricsSnapshot::e2e_latency_s},
        {"nv_llm_input_token_len", "Prompt tokens per request", "response_metric_type",
         "total_input_tokens", &MetricsSnapshot::input_tokens},
        {"nv_llm_output_token_len", "Generated tokens per sequence", "response_metric_type",
         "total_output_tokens", &MetricsSnapshot::output_tokens},
    };
    return all;
  }();
  return tables;
}

const MetricTables& TextQueueMetrics() {
  static const MetricTables tables = [] {
    MetricTables all;
    const auto add = [&all](TRITONSERVER_MetricKind kind, const char* family, const char* help,
                            std::function<double(const MetricsView&)> read) {
      all.rows.push_back({kind, family, help, "", "", "", std::move(read)});
    };
    add(kGauge, "slipstream_tokenizing", "Prompts that wait to be tokenized, or are",
        VALUE(view.text.prompts));
    add(kCounter, kRejected, kRejectedHelp, VALUE(view.text.rejected));
    add(kCounter, kDisplacedFamily, kDisplacedHelp, VALUE(view.text.displaced));
    for (const FinishReason reason :
         {FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kError}) {
      all.rows.push_back({kCounter, kFinished, kFinishedHelp, "reason", FinishReasonName(reason),
                          "", [reason](const MetricsView& view) {
                            return static_cast<double>(
                                view.text.finished[static_cast<size_t>(reason)]);
                          }});
    }
    return all;
  }();
  return tables;
}

std::string MetricsLogLine(const MetricsView& view) {
  nlohmann::ordered_json line;
  for (const MetricRow& row : LlmMetrics().rows) {
    const std::string key = row.log_key;
    if (key.empty()) continue;
    if (key == "Timestamp") {
      line[key] = WallTime(view.wall_time_us);
    } else {
      line[key] = row.value(view);
    }
  }
  return line.dump();
}

}  // namespace slipstream::triton
