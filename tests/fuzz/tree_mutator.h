// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "simulation/dice.h"

namespace slipstream::fuzz {

// Where `text` ends with a map in msgpack or JSON, changes values, entries and sizes in it, so that
// what comes out is well-formed and wrong inside. False, and nothing changed, where it does not.
bool ChangeTree(std::string* text, simulation::Dice* dice);

}  // namespace slipstream::fuzz
