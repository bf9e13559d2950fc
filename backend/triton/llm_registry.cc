// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/llm_registry.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace slipstream::triton {
namespace {

struct Entry {
  std::string name;
  const LlmService* address;
  std::weak_ptr<LlmService> service;
};

struct Table {
  std::mutex mutex;
  std::vector<Entry> entries;  // oldest first; guarded by mutex
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
}

LlmRegistration::~LlmRegistration() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  auto& entries = table.entries;
  entries.erase(std::remove_if(entries.begin(), entries.end(),
                               [&](const Entry& entry) { return entry.address == service_; }),
                entries.end());
}

std::shared_ptr<LlmService> FindLlm(const std::string& name) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  const auto entry = std::find_if(table.entries.rbegin(), table.entries.rend(),
                                  [&](const Entry& e) { return e.name == name; });
  return entry == table.entries.rend() ? nullptr : entry->service.lock();
}

}  // namespace slipstream::triton
