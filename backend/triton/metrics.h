// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "executor/executor.h"
#include "executor/executor_metrics.h"
#include "triton/model_config.h"
#include "triton/model_metrics.h"
#include "triton/text_queue.h"

namespace slipstream::triton {

// What one refresh shows.
struct MetricsView {
  MetricsSnapshot snapshot;
  Health health = Health::kStarting;
  bool on_gpu = false;  // where the KV cache lies
  int64_t weight_bytes = 0;
  int64_t wall_time_us = 0;
  TextQueueStats text;
};

// One sample of /metrics: its family, its own label, and the value it shows.
struct MetricRow {
  TRITONSERVER_MetricKind kind;
  const char* family;
  const char* help;
  const char* label;  // "" = only model and version
  const char* label_value;
  const char* log_key;  // in the line of the verbose log; "" = not in it
  std::function<double(const MetricsView&)> value;
};
struct HistogramRow {
  const char* family;
  const char* help;
  const char* label;
  const char* label_value;
  const Histogram MetricsSnapshot::* histogram;
};
// The tables. The nv_trt_llm_* families have exactly the samples and labels of TensorRT-LLM's
// backend, each with a key in the log line; everything else is under slipstream_*.
struct MetricTables {
  std::vector<MetricRow> rows;
  std::vector<HistogramRow> histograms;
};
const MetricTables& LlmMetrics();
const MetricTables& TextQueueMetrics();  // of models that tokenize

// The line of the verbose log: one JSON object with the values of all rows that have a log key.
std::string MetricsLogLine(const MetricsView& view);

// Keeps the metrics of one model up to date, on a thread of its own; deletes them with
// itself, unless another model of this name and version shows its own there.
class MetricsReporter {
 public:
  // `read`: any thread. Metrics that the server does not offer (--allow-metrics=false) are left out
  // with a warning.
  static std::unique_ptr<MetricsReporter> Create(const std::string& model, int64_t version,
                                                 int32_t period_ms, const MetricTables& tables,
                                                 std::function<MetricsView()> read);
  ~MetricsReporter();  // one last refresh
  MetricsReporter(const MetricsReporter&) = delete;
  MetricsReporter& operator=(const MetricsReporter&) = delete;

 private:
  MetricsReporter(const MetricTables& tables, std::function<MetricsView()> read)
      : tables_(tables), read_(std::move(read)) {}
  void Run(int32_t period_ms);
  void Refresh();
  void Show(const MetricsView& view);

  const MetricTables& tables_;
  const std::function<MetricsView()> read_;
  ModelMetrics::Handle metrics_;      // null: the server offers none
  ExpertMetrics* experts_ = nullptr;  // of metrics_; null without experts
  std::vector<double> counted_;       // counters: what was reported so far; refresh thread
  MetricsView last_;                  // refresh thread
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

// Of a model's queue, which must outlive it.
std::unique_ptr<MetricsReporter> ReportTextQueue(const ModelConfig& config, const TextQueue& queue);

}  // namespace slipstream::triton
