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
                                                         std::function<MetricsView()> read) {
  auto reporter = std::unique_ptr<MetricsReporter>(new MetricsReporter(std::move(read)));
  const MetricLabels base = {{"model", model}, {"version", std::to_string(version)}};
  const Status status = reporter->CreateMetrics(base);
  reporter->enabled_ = status.ok();
  if (!status.ok()) LogWarning("no metrics of model " + model + ": " + status.message());
  reporter->thread_ = std::thread([raw = reporter.get(), period_ms] { raw->Run(period_ms); });
  return reporter;
}

MetricsReporter::~MetricsReporter() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  Refresh();
}

StatusOr<const MetricFamily*> MetricsReporter::Family(TRITONSERVER_MetricKind kind,
                                                      const char* name, const char* help) {
  for (const auto& [known, family] : families_) {
    if (known == name) return static_cast<const MetricFamily*>(family.get());
  }
  auto family = MetricFamily::Create(kind, name, help);
  if (!family.ok()) return family.status();
  families_.emplace_back(name, std::make_unique<MetricFamily>(std::move(family).value()));
  return static_cast<const MetricFamily*>(families_.back().second.get());
}

Status MetricsReporter::CreateMetrics(const MetricLabels& base) {
  const auto make = [&](TRITONSERVER_MetricKind kind, const auto& row,
                        const std::vector<double>& bounds, std::vector<Metric>* into) {
    const auto family = Family(kind, row.family, row.help);
    if (!family.ok()) return family.status();
    MetricLabels labels = base;
    if (*row.label != '\0') labels.emplace_back(row.label, row.label_value);
    auto metric = Metric::Create(*family.value(), labels, bounds);
    if (!metric.ok()) return metric.status();
    into->push_back(std::move(metric).value());
    return Status::Ok();
  };
  for (const MetricRow& row : MetricRows()) {
    if (Status s = make(row.kind, row, {}, &metrics_); !s.ok()) return s;
  }
  // The first snapshot knows the bounds; counts start from zero whatever it holds.
  last_ = read_();
  for (const HistogramRow& row : HistogramRows()) {
    const Histogram& histogram = last_.snapshot.*row.histogram;
    if (Status s = make(TRITONSERVER_METRIC_KIND_HISTOGRAM, row, histogram.bounds, &histograms_);
        !s.ok()) {
      return s;
    }
  }
  if (const auto& load = last_.snapshot.expert_load; load != nullptr) {
    auto experts = ExpertMetrics::Create(base, *load);
    if (!experts.ok()) return experts.status();
    experts_ = std::move(experts).value();
  }
  last_ = MetricsView();
  counted_.assign(metrics_.size(), 0.0);
  return Status::Ok();
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

void MetricsReporter::Refresh() {
  MetricsView view = read_();
  const std::vector<MetricRow>& rows = MetricRows();
  for (size_t i = 0; enabled_ && i < rows.size(); ++i) {
    const double value = rows[i].value(view);
    if (rows[i].kind == TRITONSERVER_METRIC_KIND_GAUGE) {
      metrics_[i].Set(value);
    } else if (value > counted_[i]) {
      metrics_[i].Increment(value - counted_[i]);
      counted_[i] = value;
    }
  }
  const std::vector<HistogramRow>& histograms = HistogramRows();
  for (size_t i = 0; enabled_ && i < histograms.size(); ++i) {
    const auto member = histograms[i].histogram;
    for (const Observations& seen :
         ReplayHistogram(last_.snapshot.*member, view.snapshot.*member)) {
      for (uint64_t n = 0; n < seen.count; ++n) histograms_[i].Observe(seen.value);
    }
  }
  if (enabled_ && experts_ != nullptr) experts_->Refresh(view.snapshot.expert_load);
  if (view.snapshot.steps != last_.snapshot.steps &&
      TRITONSERVER_LogIsEnabled(TRITONSERVER_LOG_VERBOSE)) {
    LogMessage(TRITONSERVER_LOG_VERBOSE, MetricsLogLine(view));
  }
  last_ = std::move(view);
}

}  // namespace slipstream::triton
