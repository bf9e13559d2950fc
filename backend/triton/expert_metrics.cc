// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/expert_metrics.h"

#include <string>
#include <utility>

namespace slipstream::triton {
namespace {

MetricLabels With(MetricLabels labels, const char* name, int64_t value) {
  labels.emplace_back(name, std::to_string(value));
  return labels;
}

Status Append(const MetricFamily& family, const MetricLabels& labels, std::vector<Metric>* into) {
  auto metric = Metric::Create(family, labels, {});
  if (!metric.ok()) return metric.status();
  into->push_back(std::move(metric).value());
  return Status::Ok();
}

}  // namespace

StatusOr<std::unique_ptr<ExpertMetrics>> ExpertMetrics::Create(const MetricLabels& base,
                                                               const ExpertLoad& load) {
  auto imbalance = MetricFamily::Create(
      TRITONSERVER_METRIC_KIND_GAUGE, "slipstream_moe_expert_imbalance",
      "Tokens of the busiest expert of a layer over the mean of its experts, since the start");
  if (!imbalance.ok()) return imbalance.status();
  auto tokens =
      MetricFamily::Create(TRITONSERVER_METRIC_KIND_COUNTER, "slipstream_moe_expert_tokens_total",
                           "Tokens that an expert computed");
  if (!tokens.ok()) return tokens.status();
  auto metrics = std::unique_ptr<ExpertMetrics>(
      new ExpertMetrics(std::move(imbalance).value(), std::move(tokens).value()));
  const Status added = metrics->Add(base, load);
  if (!added.ok()) return added;
  return {std::move(metrics)};
}

Status ExpertMetrics::Add(const MetricLabels& base, const ExpertLoad& load) {
  layers_ = load.layers;
  num_experts_ = load.num_experts;
  const bool each = load.tokens.size() <= kMaxExpertSeries;
  for (const int32_t layer : load.layers) {
    const MetricLabels labels = With(base, "layer", layer);
    if (Status s = Append(imbalance_family_, labels, &imbalance_); !s.ok()) return s;
    imbalance_.back().Set(1);
    for (int32_t expert = 0; each && expert < load.num_experts; ++expert) {
      const MetricLabels both = With(labels, "expert", expert);
      if (Status s = Append(tokens_family_, both, &tokens_); !s.ok()) return s;
    }
  }
  return Status::Ok();
}

bool ExpertMetrics::Fits(const ExpertLoad& load) const {
  return load.layers == layers_ && load.num_experts == num_experts_;
}

void ExpertMetrics::Show(const ExpertLoad* before, const ExpertLoad& now, bool gauges) {
  for (size_t row = 0; gauges && row < imbalance_.size(); ++row) {
    imbalance_[row].Set(now.Imbalance(row));
  }
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const uint64_t known = before == nullptr ? 0 : before->tokens[i];
    if (now.tokens[i] > known) tokens_[i].Increment(static_cast<double>(now.tokens[i] - known));
  }
}

}  // namespace slipstream::triton
