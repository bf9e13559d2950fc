// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/metrics.h"

#include <chrono>
#include <utility>

#include "triton/error.h"
#include "triton/histogram_replay.h"

namespace slipstream::triton {

std::unique_ptr<MetricsReporter> MetricsReporter::Create(const std::string& model, int64_t version,
                                                         int32_t period_ms,
                                                         const MetricTables& tables,
                                                         std::function<MetricsView()> read) {
  auto reporter = std::unique_ptr<MetricsReporter>(new MetricsReporter(tables, std::move(read)));
  // The first snapshot knows the bounds; counts start from zero whatever it holds.
  const MetricsView first = reporter->read_();
  auto metrics = ModelMetrics::Acquire(model, version, tables, first);
  if (metrics.ok()) {
    reporter->metrics_ = std::move(metrics).value();
    reporter->experts_ = reporter->metrics_->ExpertsFor(first.snapshot.expert_load.get());
    reporter->metrics_->TakeGauges(reporter.get());
  } else {
    LogWarning("no metrics of model " + model + ": " + metrics.status().message());
  }
  reporter->counted_.assign(tables.rows.size(), 0.0);
  reporter->thread_ = std::thread([raw = reporter.get(), period_ms] { raw->Run(period_ms); });
  return reporter;
}

std::unique_ptr<MetricsReporter> ReportTextQueue(const ModelConfig& config,
                                                 const TextQueue& queue) {
  constexpr int32_t kPeriodMs = 100;
  return MetricsReporter::Create(config.name, config.version, kPeriodMs, TextQueueMetrics(),
                                 [&queue] {
                                   MetricsView view;
                                   view.text = queue.stats();
                                   return view;
                                 });
}

MetricsReporter::~MetricsReporter() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  Refresh();
  if (metrics_ != nullptr) metrics_->LeaveGauges(this);
}

void MetricsReporter::Run(int32_t period_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    Refresh();
    lock.lock();
    wake_.wait_for(lock, std::chrono::milliseconds(period_ms), [this] { return stopping_; });
  }
}

void MetricsReporter::Show(const MetricsView& view) {
  const bool gauges = metrics_->HasGauges(this);
  const std::vector<MetricRow>& rows = tables_.rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double value = rows[i].value(view);
    if (rows[i].kind == TRITONSERVER_METRIC_KIND_GAUGE) {
      if (gauges) metrics_->row(i).Set(value);
    } else if (value > counted_[i]) {
      metrics_->row(i).Increment(value - counted_[i]);
      counted_[i] = value;
    }
  }
  const std::vector<HistogramRow>& histograms = tables_.histograms;
  for (size_t i = 0; i < histograms.size(); ++i) {
    const auto member = histograms[i].histogram;
    for (const Observations& seen :
         ReplayHistogram(last_.snapshot.*member, view.snapshot.*member)) {
      for (uint64_t n = 0; n < seen.count; ++n) metrics_->histogram(i).Observe(seen.value);
    }
  }
  const auto& load = view.snapshot.expert_load;
  const auto& shown = last_.snapshot.expert_load;
  if (experts_ != nullptr && load != shown) experts_->Show(shown.get(), *load, gauges);
}

void MetricsReporter::Refresh() {
  MetricsView view = read_();
  if (metrics_ != nullptr) Show(view);
  if (view.snapshot.steps != last_.snapshot.steps &&
      TRITONSERVER_LogIsEnabled(TRITONSERVER_LOG_VERBOSE)) {
    LogMessage(TRITONSERVER_LOG_VERBOSE, MetricsLogLine(view));
  }
  last_ = std::move(view);
}

}  // namespace slipstream::triton
