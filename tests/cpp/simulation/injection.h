// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "simulation/workload.h"

namespace slipstream::simulation {

struct InjectionReport {
  int64_t moments = 0;
  int64_t runs = 0;
  std::string broken;  // empty: everything held in every run
};

// Runs the workload undisturbed, then again with one disturbance: at every moment a death of the
// worker, once to be restarted and once for good, a hang, a drain and a shutdown, also while the
// worker is restarted; and of every request, at every moment from its arrival to its end, a cancel,
// also while the worker is restarted, a deadline, and that it becomes deadly. Beyond the
// simulation's own checks, all other requests must get exactly what they got undisturbed, and the
// one that is struck a part of it.
InjectionReport InjectEverywhere(const Workload& workload);

}  // namespace slipstream::simulation
