// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/histogram_replay.h"

#include <algorithm>
#include <limits>

namespace slipstream::triton {

std::vector<Observations> ReplayHistogram(const Histogram& before, const Histogram& after) {
  const size_t finite = after.bounds.size();
  std::vector<uint64_t> counts = after.counts;
  for (size_t i = 0; i < before.counts.size(); ++i) counts[i] -= before.counts[i];
  const double sum = after.sum - before.sum;

  double low = 0;  // the least sum these counts can have, and how much more there can be
  double width = 0;
  for (size_t i = 0; i < finite; ++i) {
    const double lower = i == 0 ? std::min(0.0, after.bounds[0]) : after.bounds[i - 1];
    low += static_cast<double>(counts[i]) * lower;
    width += static_cast<double>(counts[i]) * (after.bounds[i] - lower);
  }
  const auto above = static_cast<double>(counts[finite]);
  const double last = finite == 0 ? 0 : after.bounds[finite - 1];
  // Values above the last bound have no upper limit: the others stay where they cannot be wrong, at
  // half width, if that leaves more than the last bound for each of them.
  double fraction = width > 0 ? (sum - low - above * last) / width : 0;
  if (above > 0) fraction = std::min(fraction, 0.5);
  // A bucket does not hold its lower bound.
  fraction = std::clamp(fraction, 1e-6, 1.0);

  std::vector<Observations> result;
  double placed = 0;
  for (size_t i = 0; i < finite; ++i) {
    if (counts[i] == 0) continue;
    const double lower = i == 0 ? std::min(0.0, after.bounds[0]) : after.bounds[i - 1];
    const double value = lower + fraction * (after.bounds[i] - lower);
    result.push_back({value, counts[i]});
    placed += static_cast<double>(counts[i]) * value;
  }
  if (counts[finite] > 0) {
    const double least = last + (last == 0 ? std::numeric_limits<double>::min() : last * 1e-9);
    result.push_back({std::max((sum - placed) / above, least), counts[finite]});
  }
  return result;
}

}  // namespace slipstream::triton
