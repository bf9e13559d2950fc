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

// A value in a form that is the same for all texts of it ("1", "True").
using CanonicalValue = StatusOr<std::string>;

// One key of a role's parameters and what setting it does to the Target.
template <typename Target>
struct ParameterRow {
  using Set = std::function<CanonicalValue(std::string_view key, const std::string& text, Target*)>;
  const char* key;
  const char* alias_of;  // the row's key whose setting this is too; "" for none
  Set set;
};

// Applies `map` by `rows`. Unknown keys, and two names of one setting with different values, are
// errors.
template <typename Target>
Status ApplyParameters(const std::map<std::string, std::string>& map,
                       const std::vector<ParameterRow<Target>>& rows, Target* target) {
  struct Given {
    std::string key;
    std::string value;
  };
  std::map<std::string, Given> settings;
  std::vector<std::string_view> keys;
  for (const auto& row : rows) keys.emplace_back(row.key);
  for (const auto& [key, text] : map) {
    const auto row =
        std::find_if(rows.begin(), rows.end(),
                     [k = std::string_view(key)](const auto& r) { return k == r.key; });
    if (row == rows.end()) {
      return Status::InvalidArgument("parameter " + key + ": unknown; the nearest known one is " +
                                     NearestName(key, keys));
    }
    const std::string setting = *row->alias_of != '\0' ? row->alias_of : row->key;
    const auto value = row->set(key, text, target);
    if (!value.ok()) return value.status();
    const auto [it, added] = settings.emplace(setting, Given{key, *value});
    const Given& first = it->second;
    if (!added && first.value != *value) {
      return Status::InvalidArgument("parameters " + first.key + " and " + key +
                                     " are the same setting, but have different values: '" +
                                     map.at(first.key) + "' and '" + text + "'");
    }
  }
  return Status::Ok();
}

}  // namespace slipstream::triton
