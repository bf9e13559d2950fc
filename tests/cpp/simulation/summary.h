// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "simulation/simulation.h"

namespace slipstream::simulation {

// Sums and extremes over simulations.
class Summary {
 public:
  void Add(const Simulation& simulation);
  // Some lines. `seconds`: that the simulations took, checks included.
  std::string Text(double seconds) const;

 private:
  int64_t runs_ = 0;
  Simulation::Tally total_;
  uint64_t scheduled_ = 0;  // sequences, over all steps
  uint64_t tokens_ = 0;
  uint64_t text_bytes_ = 0;
  std::array<uint64_t, 7> finished_{};  // by FinishReason
  int64_t longest_wait_ = 0;
  int64_t bound_of_wait_ = 0;
  double worst_share_ = 0;
  std::array<Fairness::Waits, 10> waits_{};  // by priority class
  int32_t longest_row_ = 0;                  // of failures
  TimeNs longest_back_off_ = 0;
  int64_t longest_stall_ = 0;
  int64_t bound_of_stall_ = 0;
};

}  // namespace slipstream::simulation
