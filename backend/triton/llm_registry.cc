// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/llm_registry.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <utility>

namespace slipstream::triton {
namespace {

struct Entry {
  std::string name;
  const LlmService* address;
  std::weak_ptr<LlmService> service;
};

struct Pipeline {
  std::string llm;
  const ModelConfig* config;
  PipelineRegistration::Stop stop;
};

struct Table {
  std::mutex mutex;
  std::condition_variable changed;     // entries or loading
  std::vector<Entry> entries;          // oldest first; guarded by mutex
  std::vector<Pipeline> pipelines;     // guarded by mutex
  std::multiset<std::string> loading;  // guarded by mutex

  const Entry* Newest(const std::string& name) const {
    const auto entry = std::find_if(entries.rbegin(), entries.rend(),
                                    [&](const Entry& e) { return e.name == name; });
    return entry == entries.rend() ? nullptr : &*entry;
  }
};

Table& TheTable() {
  static Table table;
  return table;
}

}  // namespace

LlmRegistration::LlmRegistration(const std::string& name,
                                 const std::shared_ptr<LlmService>& service)
    : service_(service.get()) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.entries.push_back({name, service_, service});
  table.changed.notify_all();
}

LlmRegistration::~LlmRegistration() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  auto& entries = table.entries;
  entries.erase(std::remove_if(entries.begin(), entries.end(),
                               [&](const Entry& entry) { return entry.address == service_; }),
                entries.end());
}

PipelineRegistration::PipelineRegistration(const std::string& llm, const ModelConfig* config,
                                           Stop stop)
    : config_(config) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.pipelines.push_back({llm, config, std::move(stop)});
}

PipelineRegistration::~PipelineRegistration() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  auto& all = table.pipelines;
  all.erase(std::remove_if(all.begin(), all.end(),
                           [&](const Pipeline& pipeline) { return pipeline.config == config_; }),
            all.end());
}

LlmLoading::LlmLoading(const std::string& name) : name_(name) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.loading.insert(name_);
  table.changed.notify_all();
}

LlmLoading::~LlmLoading() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.loading.erase(table.loading.find(name_));
  table.changed.notify_all();
}

std::shared_ptr<LlmService> FindLlm(const std::string& name) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  const Entry* entry = table.Newest(name);
  return entry == nullptr ? nullptr : entry->service.lock();
}

std::vector<std::shared_ptr<LlmService>> AllLlms() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  std::vector<std::shared_ptr<LlmService>> found;
  for (const Entry& entry : table.entries) {
    if (auto service = entry.service.lock()) found.push_back(std::move(service));
  }
  return found;
}

bool IsAnyLlmLoading() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  return !table.loading.empty();
}

void WaitForLlm(const std::string& name, int start_ms) {
  Table& table = TheTable();
  std::unique_lock<std::mutex> lock(table.mutex);
  const auto loading = [&] { return table.loading.count(name) > 0; };
  const auto loaded = [&] { return table.Newest(name) != nullptr; };
  table.changed.wait_for(lock, std::chrono::milliseconds(start_ms),
                         [&] { return loading() || loaded(); });
  table.changed.wait(lock, [&] { return loaded() || !loading(); });
}

bool IsCurrentLlm(const std::string& name, const LlmService* service) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  const Entry* entry = table.Newest(name);
  return entry != nullptr && entry->address == service && table.loading.count(name) == 0;
}

void StopBeforeLlm(const std::string& llm, const std::string& id) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  for (const Pipeline& pipeline : table.pipelines) {
    if (pipeline.llm == llm) pipeline.stop(id);
  }
}

std::vector<ModelConfig> PipelinesOf(const std::string& llm) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  std::vector<ModelConfig> found;
  for (const Pipeline& pipeline : table.pipelines) {
    if (pipeline.llm == llm) found.push_back(*pipeline.config);
  }
  return found;
}

}  // namespace slipstream::triton
