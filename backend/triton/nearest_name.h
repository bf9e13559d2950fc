// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace slipstream::triton {

// Single-character edits between two names.
inline size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The candidate that takes the fewest edits; the first of equals, empty without candidates. Of a
// name that is longer than any candidate only the beginning counts: it may have megabytes.
inline std::string NearestName(std::string_view name,
                               const std::vector<std::string_view>& candidates) {
  name = name.substr(0, 100);
  const auto nearest = std::min_element(candidates.begin(), candidates.end(),
                                        [&](std::string_view a, std::string_view b) {
                                          return EditDistance(name, a) < EditDistance(name, b);
                                        });
  return nearest == candidates.end() ? std::string() : std::string(*nearest);
}

}  // namespace slipstream::triton
