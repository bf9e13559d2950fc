// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/expert_load.h"

#include <algorithm>
#include <numeric>

namespace slipstream {

double ExpertLoad::Imbalance(size_t row) const {
  const auto begin = tokens.begin() + static_cast<ptrdiff_t>(row) * num_experts;
  const auto end = begin + num_experts;
  const uint64_t sum = std::accumulate(begin, end, uint64_t{0});
  if (sum == 0) return 1;
  return static_cast<double>(*std::max_element(begin, end)) * num_experts /
         static_cast<double>(sum);
}

}  // namespace slipstream
