// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "triton/expert_metrics.h"
#include "triton/metric_handle.h"

namespace slipstream::triton {

struct MetricTables;
struct MetricsView;

// The samples of one model at /metrics, by the rows of the tables in metrics.h.
//
// After a reload the old model drains beside the new one, under the same labels. Triton gives both
// the same samples, and takes them from the second when the first deletes its own: writing to them
// then corrupts its heap. So there is one set per process, which goes with its last holder. Any
// thread may write; Triton's metrics lock for themselves.
class ModelMetrics final {
 public:
  struct Release {
    void operator()(ModelMetrics* metrics) const;
  };
  using Handle = std::unique_ptr<ModelMetrics, Release>;

  // `view`: its histograms' bounds become those of the first holder's histograms.
  static StatusOr<Handle> Acquire(const std::string& model, int64_t version,
                                  const MetricTables& tables, const MetricsView& view);
  ~ModelMetrics() = default;
  ModelMetrics(const ModelMetrics&) = delete;
  ModelMetrics& operator=(const ModelMetrics&) = delete;

  Metric& row(size_t i) { return rows_[i]; }
  Metric& histogram(size_t i) { return histograms_[i]; }
  // For a holder with these experts; null without any, or if a model of the same name that drains
  // has other experts, since its samples are still there.
  ExpertMetrics* ExpertsFor(const ExpertLoad* load) const;

  // Gauges show one holder, the last that took them; when it is gone another may.
  void TakeGauges(const void* holder) { gauges_of_ = holder; }
  void LeaveGauges(const void* holder) { gauges_of_.compare_exchange_strong(holder, nullptr); }
  bool HasGauges(const void* holder) {
    const void* nobody = nullptr;
    return gauges_of_.compare_exchange_strong(nobody, holder) || nobody == holder;
  }

 private:
  ModelMetrics() = default;
  Status Create(const MetricLabels& base, const MetricTables& tables, const MetricsView& view);
  StatusOr<const MetricFamily*> Family(TRITONSERVER_MetricKind kind, const char* name,
                                       const char* help);

  // Families outlive their metrics: declared first.
  std::vector<std::pair<std::string, std::unique_ptr<MetricFamily>>> families_;
  std::vector<Metric> rows_;
  std::vector<Metric> histograms_;
  std::unique_ptr<ExpertMetrics> experts_;
  std::atomic<const void*> gauges_of_{nullptr};
};

}  // namespace slipstream::triton
