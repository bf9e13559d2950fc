// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/parameter_table.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>

namespace slipstream::triton {
namespace {

Status Bad(std::string_view key, const std::string& value, const std::string& must) {
  return Status::InvalidArgument("parameter " + std::string(key) + ": '" + value + "' " + must);
}

std::string Trimmed(const std::string& value) {
  const auto first = value.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return value.substr(first, value.find_last_not_of(" \t\r\n") - first + 1);
}

std::string Lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

}  // namespace

StatusOr<int64_t> ParseInt(std::string_view key, const std::string& value, int64_t min,
                           int64_t max) {
  const std::string text = Trimmed(value);
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text.c_str(), &end, 10);
  const std::string range = std::to_string(min) + " .. " + std::to_string(max);
  if (text.empty() || end != text.c_str() + text.size() || errno != 0) {
    return Bad(key, value, "is not a whole number; allowed: " + range);
  }
  if (number < min || number > max) return Bad(key, value, "is outside " + range);
  return static_cast<int64_t>(number);
}

StatusOr<double> ParseFloat(std::string_view key, const std::string& value, double min,
                            double max) {
  const std::string text = Trimmed(value);
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const std::string range = std::to_string(min) + " .. " + std::to_string(max);
  if (text.empty() || end != text.c_str() + text.size() || !std::isfinite(number)) {
    return Bad(key, value, "is not a number; allowed: " + range);
  }
  if (number < min || number > max) return Bad(key, value, "is outside " + range);
  return number;
}

StatusOr<bool> ParseBool(std::string_view key, const std::string& value) {
  const std::string text = Lower(Trimmed(value));
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return Bad(key, value, "is none of true, false, 1, 0");
}

StatusOr<size_t> ParseChoice(std::string_view key, const std::string& value,
                             const std::vector<std::string_view>& choices) {
  const std::string text = Trimmed(value);
  std::string list;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (text == choices[i]) return i;
    list += (i == 0 ? "" : ", ") + std::string(choices[i]);
  }
  return Bad(key, value, "is none of " + list);
}

}  // namespace slipstream::triton
