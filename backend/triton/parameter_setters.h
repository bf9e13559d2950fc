// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "triton/parameter_table.h"

namespace slipstream::triton {

inline constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
inline constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Setters. `field` returns the member to set.
template <typename Target, typename Field>
typename ParameterRow<Target>::Set Int(Field field, int64_t min, int64_t max) {
  return [=](std::string_view key, const std::string& text, Target* target) -> CanonicalValue {
    const auto number = ParseInt(key, text, min, max);
    if (!number.ok()) return number.status();
    auto& member = field(target);
    member = static_cast<std::decay_t<decltype(member)>>(*number);
    return std::to_string(*number);
  };
}
template <typename Target, typename Field>
typename ParameterRow<Target>::Set Bool(Field field) {
  return [=](std::string_view key, const std::string& text, Target* target) -> CanonicalValue {
    const auto flag = ParseBool(key, text);
    if (!flag.ok()) return flag.status();
    field(target) = *flag;
    return std::string(*flag ? "true" : "false");
  };
}
template <typename Target, typename Field>
typename ParameterRow<Target>::Set Text(Field field) {
  return [=](std::string_view, const std::string& text, Target* target) {
    field(target) = text;
    return text;
  };
}
template <typename Target>
typename ParameterRow<Target>::Set Any() {
  return [](std::string_view, const std::string& text, Target*) { return text; };
}
template <typename Target>
typename ParameterRow<Target>::Set NoEffect(const char* why) {
  return [=](std::string_view key, const std::string& text, Target* target) {
    target->without_effect.push_back(std::string(key) + " (" + why + ")");
    return text;
  };
}

template <typename Target>
typename ParameterRow<Target>::Set RefusedIfSet(const char* feature) {
  return [=](std::string_view key, const std::string& text, Target*) {
    return Status::Unsupported("parameter " + std::string(key) + ": '" + text +
                               "' is not supported (no support for " + feature + ")");
  };
}

// Accessor of a member of the Target, for the setters above.
#define SLIPSTREAM_FIELD(Target, member) [](Target* p) -> auto& { return p->member; }

}  // namespace slipstream::triton
