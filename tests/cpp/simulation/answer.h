// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "executor/event.h"
#include "executor/request.h"

namespace slipstream::simulation {

// What one sequence gives when nothing ends it early: a pure function of its request.
struct Answer {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kLength;
  int32_t completion_tokens = 0;  // an end id counts, but is not among the tokens
};

Answer AnswerOf(const RequestSpec& spec, int32_t index, int32_t vocab_size);

}  // namespace slipstream::simulation
