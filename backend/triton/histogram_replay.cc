// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/histogram_replay.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace slipstream::triton {

namespace {

bool IsWhole(double value) { return std::floor(value) == value; }

double Lower(const std::vector<double>& bounds, size_t i) {
  return i == 0 ? std::min(0.0, bounds[0]) : bounds[i - 1];
}

// Counts of things: every observation is a whole number, so that the sum of all stays one. As many
// as needed are moved from the least value of their bucket to the greatest, one in between.
std::vector<Observations> ReplayWhole(const std::vector<double>& bounds,
                                      const std::vector<uint64_t>& counts, double sum) {
  const size_t finite = bounds.size();
  const auto least = [&](size_t i) {
    return i == finite ? bounds.back() + 1 : i == 0 ? Lower(bounds, 0) : bounds[i - 1] + 1;
  };
  double rest = sum;
  for (size_t i = 0; i <= finite; ++i) rest -= static_cast<double>(counts[i]) * least(i);
  std::vector<Observations> result;
  for (size_t i = 0; i <= finite; ++i) {
    uint64_t left = counts[i];
    if (left == 0) continue;
    if (i == finite) {  // no upper bound: one takes all that is left
      result.push_back({least(i) + std::max(rest, 0.0), 1});
      --left;
    } else if (const double span = bounds[i] - least(i); span > 0 && rest > 0) {
      const auto whole = std::min(left, static_cast<uint64_t>(rest / span));
      if (whole > 0) result.push_back({bounds[i], whole});
      rest -= static_cast<double>(whole) * span;
      left -= whole;
      if (left > 0 && rest > 0 && rest < span) {
        result.push_back({least(i) + rest, 1});
        rest = 0;
        --left;
      }
    }
    if (left > 0) result.push_back({least(i), left});
  }
  return result;
}

}  // namespace

std::vector<Observations> ReplayHistogram(const Histogram& before, const Histogram& after) {
  const size_t finite = after.bounds.size();
  std::vector<uint64_t> counts = after.counts;
  for (size_t i = 0; i < before.counts.size(); ++i) counts[i] -= before.counts[i];
  const double sum = after.sum - before.sum;
  if (finite > 0 && IsWhole(sum) &&
      std::all_of(after.bounds.begin(), after.bounds.end(), IsWhole)) {
    return ReplayWhole(after.bounds, counts, sum);
  }

  double low = 0;  // the least sum these counts can have, and how much more there can be
  double width = 0;
  for (size_t i = 0; i < finite; ++i) {
    const double lower = Lower(after.bounds, i);
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
    const double lower = Lower(after.bounds, i);
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
