// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "executor/status.h"

namespace slipstream {

// JSON and msgpack from outside this process. Values are copied, written and (in msgpack) read by
// functions that call themselves for every level, on both sides of a link, so that a few hundred
// kilobytes of opening brackets would use up a thread's stack: what is nested deeper than this is
// refused while it is read.
inline constexpr int kMaxJsonDepth = 100;

// kInvalidArgument saying "is not JSON" or "is nested deeper than 100 levels": the caller puts the
// name in front.
StatusOr<nlohmann::json> ParseJson(std::string_view text);
StatusOr<nlohmann::json> ParseMsgpack(const uint8_t* data, size_t size);

}  // namespace slipstream
