// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/model_metrics.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "triton/metrics.h"

namespace slipstream::triton {
namespace {

struct Table {
  struct Entry {
    std::unique_ptr<ModelMetrics> metrics;
    int holders = 0;
  };
  std::mutex mutex;  // held while metrics are created and deleted, too
  std::map<std::pair<std::string, int64_t>, Entry> entries;  // guarded by mutex
};

Table& TheTable() {
  static Table table;
  return table;
}

}  // namespace

StatusOr<ModelMetrics::Handle> ModelMetrics::Acquire(const std::string& model, int64_t version,
                                                     const MetricTables& tables,
                                                     const MetricsView& view) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  Table::Entry& entry = table.entries[{model, version}];
  if (entry.metrics == nullptr) {
    std::unique_ptr<ModelMetrics> made(new ModelMetrics());
    const Status status =
        made->Create({{"model", model}, {"version", std::to_string(version)}}, tables, view);
    if (!status.ok()) {
      table.entries.erase({model, version});
      return status;
    }
    entry.metrics = std::move(made);
  }
  ++entry.holders;
  return Handle(entry.metrics.get());
}

void ModelMetrics::Release::operator()(ModelMetrics* metrics) const {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  const auto entry =
      std::find_if(table.entries.begin(), table.entries.end(),
                   [&](const auto& item) { return item.second.metrics.get() == metrics; });
  if (--entry->second.holders == 0) table.entries.erase(entry);
}

StatusOr<const MetricFamily*> ModelMetrics::Family(TRITONSERVER_MetricKind kind, const char* name,
                                                   const char* help) {
  for (const auto& [known, family] : families_) {
    if (known == name) return static_cast<const MetricFamily*>(family.get());
  }
  auto family = MetricFamily::Create(kind, name, help);
  if (!family.ok()) return family.status();
  families_.emplace_back(name, std::make_unique<MetricFamily>(std::move(family).value()));
  return static_cast<const MetricFamily*>(families_.back().second.get());
}

Status ModelMetrics::Create(const MetricLabels& base, const MetricTables& tables,
                            const MetricsView& view) {
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
  for (const MetricRow& row : tables.rows) {
    if (Status s = make(row.kind, row, {}, &rows_); !s.ok()) return s;
  }
  for (const HistogramRow& row : tables.histograms) {
    const Histogram& histogram = view.snapshot.*row.histogram;
    if (Status s = make(TRITONSERVER_METRIC_KIND_HISTOGRAM, row, histogram.bounds, &histograms_);
        !s.ok()) {
      return s;
    }
  }
  if (view.snapshot.expert_load != nullptr) {
    auto experts = ExpertMetrics::Create(base, *view.snapshot.expert_load);
    if (!experts.ok()) return experts.status();
    experts_ = std::move(experts).value();
  }
  return Status::Ok();
}

ExpertMetrics* ModelMetrics::ExpertsFor(const ExpertLoad* load) const {
  const bool fits = load != nullptr && experts_ != nullptr && experts_->Fits(*load);
  return fits ? experts_.get() : nullptr;
}

}  // namespace slipstream::triton
