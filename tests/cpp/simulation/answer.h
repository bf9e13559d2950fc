// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "executor/event.h"
#include "executor/request.h"
#include "simulation/script.h"

namespace slipstream::simulation {

// What one sequence gives when nothing ends it early: a pure function of its request.
struct Answer {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kLength;
  std::string stop_reason;
  int32_t completion_tokens = 0;  // an end id counts, but is not among the tokens
  std::string text;               // empty when no text is asked for
  std::vector<size_t> certain;    // by token: bytes of `text` that are certain once it is there
};

Answer AnswerOf(const Script& script, const RequestSpec& spec, int32_t sequence);

// The text of a sequence that something else ends after the first `count` of these tokens.
std::string TextIfEnded(const Script& script, const RequestSpec& spec,
                        const std::vector<int32_t>& tokens, size_t count);

}  // namespace slipstream::simulation
