// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "executor/expert_load.h"
#include "triton/metric_handle.h"

namespace slipstream::triton {

// The load of one model's experts on /metrics: by layer how uneven it is, and the tokens of every
// expert unless that were more than kMaxExpertSeries samples.
class ExpertMetrics {
 public:
  static constexpr size_t kMaxExpertSeries = 2048;

  // `base`: labels of every sample. Counters start from zero whatever `load` holds.
  static StatusOr<std::unique_ptr<ExpertMetrics>> Create(const MetricLabels& base,
                                                         const ExpertLoad& load);
  bool Fits(const ExpertLoad& load) const;
  // Adds what was computed since `before` (null: ever). Gauges are set only if `gauges`.
  void Show(const ExpertLoad* before, const ExpertLoad& now, bool gauges);

 private:
  ExpertMetrics(MetricFamily imbalance, MetricFamily tokens)
      : imbalance_family_(std::move(imbalance)), tokens_family_(std::move(tokens)) {}
  Status Add(const MetricLabels& base, const ExpertLoad& load);

  // Families outlive their metrics: declared first.
  MetricFamily imbalance_family_;
  MetricFamily tokens_family_;
  std::vector<Metric> imbalance_;  // by layer
  std::vector<Metric> tokens_;     // by layer and expert; empty above the limit
  std::vector<int32_t> layers_;
  int32_t num_experts_ = 0;
};

}  // namespace slipstream::triton
