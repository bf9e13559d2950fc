// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/metric_handle.h"

#include "triton/error.h"

namespace slipstream::triton {
namespace {

struct DeleteParameter {
  void operator()(TRITONSERVER_Parameter* parameter) const {
    TRITONSERVER_ParameterDelete(parameter);
  }
};
struct DeleteArgs {
  void operator()(TRITONSERVER_MetricArgs* args) const {
    LogIfError(TRITONSERVER_MetricArgsDelete(args), "deleting metric arguments");
  }
};

}  // namespace

void MetricFamily::Delete::operator()(TRITONSERVER_MetricFamily* family) const {
  LogIfError(TRITONSERVER_MetricFamilyDelete(family), "deleting a metric family");
}
void Metric::Delete::operator()(TRITONSERVER_Metric* metric) const {
  LogIfError(TRITONSERVER_MetricDelete(metric), "deleting a metric");
}

StatusOr<MetricFamily> MetricFamily::Create(TRITONSERVER_MetricKind kind, const std::string& name,
                                            const std::string& help) {
  TRITONSERVER_MetricFamily* family = nullptr;
  Status status =
      FromTritonError(TRITONSERVER_MetricFamilyNew(&family, kind, name.c_str(), help.c_str()));
  if (!status.ok()) return status;
  return MetricFamily(kind, family);
}

StatusOr<Metric> Metric::Create(const MetricFamily& family, const MetricLabels& labels,
                                const std::vector<double>& bounds) {
  std::vector<std::unique_ptr<TRITONSERVER_Parameter, DeleteParameter>> parameters;
  std::vector<const TRITONSERVER_Parameter*> raw;
  parameters.reserve(labels.size());  // so that none that was made is lost while it grows
  for (const auto& [name, value] : labels) {
    parameters.emplace_back(
        TRITONSERVER_ParameterNew(name.c_str(), TRITONSERVER_PARAMETER_STRING, value.c_str()));
    raw.push_back(parameters.back().get());
  }
  std::unique_ptr<TRITONSERVER_MetricArgs, DeleteArgs> args;
  if (!bounds.empty()) {
    TRITONSERVER_MetricArgs* made = nullptr;
    Status status = FromTritonError(TRITONSERVER_MetricArgsNew(&made));
    if (!status.ok()) return status;
    args.reset(made);
    status =
        FromTritonError(TRITONSERVER_MetricArgsSetHistogram(made, bounds.data(), bounds.size()));
    if (!status.ok()) return status;
  }
  TRITONSERVER_Metric* metric = nullptr;
  Status status = FromTritonError(
      TRITONSERVER_MetricNewWithArgs(&metric, family.get(), raw.data(), raw.size(), args.get()));
  if (!status.ok()) return status;
  return Metric(metric);
}

void Metric::Set(double value) {
  LogIfError(TRITONSERVER_MetricSet(metric_.get(), value), "setting a gauge");
}
void Metric::Increment(double delta) {
  LogIfError(TRITONSERVER_MetricIncrement(metric_.get(), delta), "raising a counter");
}
void Metric::Observe(double value) {
  LogIfError(TRITONSERVER_MetricObserve(metric_.get(), value), "filling a histogram");
}

}  // namespace slipstream::triton
