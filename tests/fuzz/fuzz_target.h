// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace slipstream::fuzz {

// One reader of bytes that someone else wrote, and what must hold whatever they are.
struct FuzzTarget {
  const char* name;
  // Aborts, by Require, where something does not hold. Keeps nothing from one call to the next.
  void (*run)(const uint8_t* data, size_t size);
  // Inputs that are valid, to begin from.
  std::vector<std::string> (*seeds)();
};

const std::vector<FuzzTarget>& FuzzTargets();
const FuzzTarget* FindTarget(std::string_view name);  // null: there is none

// Ends the process, telling `what`, unless `holds`.
void Require(bool holds, std::string_view what);

inline std::string_view AsText(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace slipstream::fuzz
