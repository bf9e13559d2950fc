// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "executor/engine_config.h"
#include "executor/status.h"

namespace slipstream {

// What waits, or asks to: sequences and their prompt tokens.
struct QueueLoad {
  int64_t sequences = 0;
  int64_t tokens = 0;
};

inline QueueLoad operator+(QueueLoad a, QueueLoad b) {
  return {a.sequences + b.sequences, a.tokens + b.tokens};
}
inline QueueLoad operator-(QueueLoad a, QueueLoad b) {
  return {a.sequences - b.sequences, a.tokens - b.tokens};
}

constexpr int kPriorityClasses = 10;  // 0 is served first
using ClassLoads = std::array<QueueLoad, kPriorityClasses>;

// What a request is told whose place in a full queue was taken.
inline constexpr char kDisplaced[] =
    "the queue is full: this request's place went to one of a better priority class";

// What a request of class `priority` leaves behind itself: it may take the places of sequences of
// worse classes that have not begun.
QueueLoad Displaceable(const ClassLoads& fresh, int32_t priority);

// kUnavailable when `more` does not fit into a queue that holds `waiting`, with the numbers. What
// alone exceeds a bound never gets here: Request::Create refuses it.
Status CheckQueue(const ExecutorConfig& config, QueueLoad waiting, QueueLoad more);

}  // namespace slipstream
