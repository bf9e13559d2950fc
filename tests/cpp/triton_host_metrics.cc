// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "allocation_faults.h"
#include "triton_host.h"

struct TRITONSERVER_MetricArgs {};
struct TRITONSERVER_MetricFamily {
  std::string name;
  int metrics = 0;
};
struct TRITONSERVER_Metric {
  TRITONSERVER_MetricFamily* family;
  std::string sample;
  std::shared_ptr<bool> alive;  // the sample, which metrics of the same labels share
};

namespace {

std::mutex g_metrics_mutex;
std::map<std::string, double> g_samples;  // guarded by g_metrics_mutex
int g_metrics = 0;                        // guarded by g_metrics_mutex
int g_families = 0;                       // guarded by g_metrics_mutex
int g_orphaned = 0;                       // guarded by g_metrics_mutex
// Of the samples that are alive; guarded by g_metrics_mutex.
std::map<std::string, std::shared_ptr<bool>> g_alive;

void Add(const TRITONSERVER_Metric* metric, const std::string& suffix, double value, bool set) {
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  if (!*metric->alive) ++g_orphaned;
  const std::string sample = metric->sample + suffix;
  g_samples[sample] = set ? value : g_samples[sample] + value;
}

}  // namespace

namespace slipstream::triton::host {

AliveMetrics CountAliveMetrics() {
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  return {g_metrics, g_families, g_orphaned};
}

std::map<std::string, double> Metrics(const std::string& model) {
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  std::map<std::string, double> samples;
  for (const auto& [key, value] : g_samples) {
    if (key.rfind(model + "/", 0) == 0) samples[key.substr(model.size() + 1)] = value;
  }
  return samples;
}

}  // namespace slipstream::triton::host

extern "C" {

TRITONSERVER_Parameter* TRITONSERVER_ParameterNew(const char* name,
                                                  const TRITONSERVER_ParameterType,
                                                  const void* value) {
  return new TRITONSERVER_Parameter{name, static_cast<const char*>(value)};
}
void TRITONSERVER_ParameterDelete(TRITONSERVER_Parameter* parameter) { delete parameter; }
TRITONSERVER_Error* TRITONSERVER_MetricFamilyNew(TRITONSERVER_MetricFamily** family,
                                                 TRITONSERVER_MetricKind, const char* name,
                                                 const char*) {
  const slipstream::FaultPause pause;
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  ++g_families;
  *family = new TRITONSERVER_MetricFamily{name};
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricFamilyDelete(TRITONSERVER_MetricFamily* family) {
  const slipstream::FaultPause pause;
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  if (family->metrics > 0) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "metrics of the family are alive");
  }
  --g_families;
  delete family;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricArgsNew(TRITONSERVER_MetricArgs** args) {
  const slipstream::FaultPause pause;
  *args = new TRITONSERVER_MetricArgs();
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricArgsSetHistogram(TRITONSERVER_MetricArgs*, const double*,
                                                        const uint64_t) {
  const slipstream::FaultPause pause;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricArgsDelete(TRITONSERVER_MetricArgs* args) {
  const slipstream::FaultPause pause;
  delete args;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricNewWithArgs(TRITONSERVER_Metric** metric,
                                                   TRITONSERVER_MetricFamily* family,
                                                   const TRITONSERVER_Parameter** labels,
                                                   const uint64_t label_count,
                                                   const TRITONSERVER_MetricArgs*) {
  const slipstream::FaultPause pause;
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  std::string sample = labels[0]->value + "/" + family->name;
  for (uint64_t i = 2; i < label_count; ++i) {  // after model and version
    sample += (i == 2 ? "{" : ",") + labels[i]->name + "=\"" + labels[i]->value + "\"";
  }
  if (label_count > 2) sample += "}";
  ++g_metrics;
  ++family->metrics;
  std::shared_ptr<bool>& alive = g_alive[sample];
  if (alive == nullptr) alive = std::make_shared<bool>(true);
  *metric = new TRITONSERVER_Metric{family, sample, alive};
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricDelete(TRITONSERVER_Metric* metric) {
  const slipstream::FaultPause pause;
  const std::lock_guard<std::mutex> lock(g_metrics_mutex);
  --g_metrics;
  --metric->family->metrics;
  // As Triton does, whoever else holds it.
  if (std::exchange(*metric->alive, false)) g_alive.erase(metric->sample);
  delete metric;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricIncrement(TRITONSERVER_Metric* metric, double value) {
  const slipstream::FaultPause pause;
  Add(metric, "", value, false);
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricSet(TRITONSERVER_Metric* metric, double value) {
  const slipstream::FaultPause pause;
  Add(metric, "", value, true);
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MetricObserve(TRITONSERVER_Metric* metric, double value) {
  const slipstream::FaultPause pause;
  Add(metric, "_count", 1, false);
  Add(metric, "_sum", value, false);
  return nullptr;
}

}  // extern "C"
