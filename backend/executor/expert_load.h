// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace slipstream {

// Tokens that each expert of a mixture computed, layer by layer.
struct ExpertLoad {
  std::vector<int32_t> layers;   // those with experts, by their numbers in the model
  int32_t num_experts = 0;       // of each layer
  std::vector<uint64_t> tokens;  // [layers, num_experts]

  // The busiest expert's tokens over the mean of the row's layer: 1 is even, num_experts is one
  // expert doing everything. 1 for a layer that has computed nothing.
  double Imbalance(size_t row) const;
};

}  // namespace slipstream
