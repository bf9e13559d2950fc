// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "executor/executor_metrics.h"

namespace slipstream::triton {

struct Observations {
  double value = 0;
  uint64_t count = 0;
};

// Triton's histograms only take single observations, while the Executor counts in buckets of its
// own. Returns observations that lead from the snapshot `before` to `after`: as many in each
// bucket, and with the same sum. (Within their buckets the values are moved by one common fraction,
// which is chosen so that the sum is right. Where all is whole numbers, the observations are, too.)
std::vector<Observations> ReplayHistogram(const Histogram& before, const Histogram& after);

}  // namespace slipstream::triton
