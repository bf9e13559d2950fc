// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "executor/status.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// A family of Triton's /metrics page. Models may create the same one side by side; Triton wants all
// its metrics deleted before it.
class MetricFamily {
 public:
  static StatusOr<MetricFamily> Create(TRITONSERVER_MetricKind kind, const std::string& name,
                                       const std::string& help);
  TRITONSERVER_MetricFamily* get() const { return family_.get(); }
  TRITONSERVER_MetricKind kind() const { return kind_; }

 private:
  struct Delete {
    void operator()(TRITONSERVER_MetricFamily* family) const;
  };
  MetricFamily(TRITONSERVER_MetricKind kind, TRITONSERVER_MetricFamily* family)
      : kind_(kind), family_(family) {}

  TRITONSERVER_MetricKind kind_;
  std::unique_ptr<TRITONSERVER_MetricFamily, Delete> family_;
};

// One sample of a family, or one histogram.
class Metric {
 public:
  // `bounds`: upper bounds of a histogram's buckets; empty for other kinds.
  static StatusOr<Metric> Create(const MetricFamily& family, const MetricLabels& labels,
                                 const std::vector<double>& bounds);
  void Set(double value);        // gauge
  void Increment(double delta);  // counter
  void Observe(double value);    // histogram

 private:
  struct Delete {
    void operator()(TRITONSERVER_Metric* metric) const;
  };
  explicit Metric(TRITONSERVER_Metric* metric) : metric_(metric) {}

  std::unique_ptr<TRITONSERVER_Metric, Delete> metric_;
};

}  // namespace slipstream::triton
