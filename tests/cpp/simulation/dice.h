// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "executor/block_hash.h"

namespace slipstream::simulation {

// Random draws that are the same on every platform.
class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}

  uint64_t Next() { return Mix64(seed_, ++draws_); }
  // Both ends included.
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  int32_t Int(int32_t low, int32_t high) { return static_cast<int32_t>(Between(low, high)); }
  double Fraction() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  bool Chance(double probability) { return Fraction() < probability; }
  int64_t Exponential(int64_t mean) {
    return static_cast<int64_t>(-std::log1p(-Fraction()) * static_cast<double>(mean));
  }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Next() % values.size()];
  }

 private:
  const uint64_t seed_;
  uint64_t draws_ = 0;
};

}  // namespace slipstream::simulation
