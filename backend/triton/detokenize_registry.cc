// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/detokenize_registry.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

namespace slipstream::triton {
namespace {

struct Entry {
  const DetokenizeRegistration* address;
  std::string name;
  bool skip_special_tokens;
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

DetokenizeRegistration::DetokenizeRegistration(const std::string& name, bool skip_special_tokens) {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  table.entries.push_back({this, name, skip_special_tokens});
}

DetokenizeRegistration::~DetokenizeRegistration() {
  Table& table = TheTable();
  const std::lock_guard<std::mutex> lock(table.mutex);
  auto& entries = table.entries;
  entries.erase(std::remove_if(entries.begin(), entries.end(),
                               [this](const Entry& entry) { return entry.address == this; }),
                entries.end());
}

StatusOr<bool> AgreedSkipSpecialTokens() {
  std::map<std::string, bool> newest;
  {
    Table& table = TheTable();
    const std::lock_guard<std::mutex> lock(table.mutex);
    for (const Entry& entry : table.entries) newest[entry.name] = entry.skip_special_tokens;
  }
  std::string skipping;
  std::string keeping;
  for (const auto& [name, skip] : newest) (skip ? skipping : keeping) = name;
  if (skipping.empty() || keeping.empty()) return keeping.empty();
  return Status::InvalidArgument(
      "skip_special_tokens: the parameter is true on model " + skipping + " and false on model " +
      keeping + "; give this input, or set the parameter on the model of role llm");
}

}  // namespace slipstream::triton
