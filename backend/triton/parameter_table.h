// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "executor/status.h"
#include "triton/nearest_name.h"

namespace slipstream::triton {

// Readers of parameter values. Errors name the key, the value and what is allowed.
StatusOr<int64_t> ParseInt(std::string_view key, const std::string& value, int64_t min,
                           int64_t max);
StatusOr<double> ParseFloat(std::string_view key, const std::string& value, double min, double max);
StatusOr<bool> ParseBool(std::string_view key, const std::string& value);  // true, false, 1, 0
// Index into `choices`.
StatusOr<size_t> ParseChoice(std::string_view key, const std::string& value,
                             const std::vector<std::string_view>& choices);

// One key of a role's parameters and what setting it does to the Target.
template <typename Target>
struct ParameterRow {
  using Set = std::function<Status(std::string_view key, const std::string& value, Target*)>;
  const char* key;
  const char* alias_of;  // the row's key whose setting this is too; "" for none
  Set set;
};

// Applies `map` by `rows`. Unknown keys, and two names of one setting with different values, are
// errors.
template <typename Target>
Status ApplyParameters(const std::map<std::string, std::string>& map,
                       const std::vector<ParameterRow<Target>>& rows, Target* target) {
  std::map<std::string, std::string> given;  // setting -> key that gave it
  std::vector<std::string_view> keys;
  for (const auto& row : rows) keys.emplace_back(row.key);
  for (const auto& [key, value] : map) {
    const auto row =
        std::find_if(rows.begin(), rows.end(),
                     [k = std::string_view(key)](const auto& r) { return k == r.key; });
    if (row == rows.end()) {
      return Status::InvalidArgument("parameter " + key + ": unknown; the nearest known one is " +
                                     NearestName(key, keys));
    }
    const std::string setting = *row->alias_of != '\0' ? row->alias_of : row->key;
    const auto [first, added] = given.emplace(setting, key);
    if (!added && map.at(first->second) != value) {
      return Status::InvalidArgument("parameters " + first->second + " and " + key +
                                     " are the same setting, but have different values: '" +
                                     map.at(first->second) + "' and '" + value + "'");
    }
    if (Status status = row->set(key, value, target); !status.ok()) return status;
  }
  return Status::Ok();
}

}  // namespace slipstream::triton
