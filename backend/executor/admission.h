// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "executor/engine_config.h"
#include "executor/status.h"

namespace slipstream {

// What waits, or asks to: sequences and their prompt tokens.
struct QueueLoad {
  int64_t sequences = 0;
  int64_t tokens = 0;
};

// kUnavailable when `more` does not fit into a queue that holds `waiting`, with the numbers. What
// alone exceeds a bound never gets here: Request::Create refuses it.
Status CheckQueue(const ExecutorConfig& config, QueueLoad waiting, QueueLoad more);

}  // namespace slipstream
