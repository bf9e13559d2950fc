// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "simulation/dice.h"

namespace slipstream::fuzz {

// One of `seeds` after a few random changes: bits, bytes, numbers at their extremes, pieces left
// out, repeated or taken from another seed, in maps also whole values. For where there is no
// libFuzzer.
std::string Mutant(const std::vector<std::string>& seeds, simulation::Dice* dice);

}  // namespace slipstream::fuzz
