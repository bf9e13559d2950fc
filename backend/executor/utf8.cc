// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/utf8.h"

#include <algorithm>

namespace slipstream {
namespace {

// What may follow a lead byte: `trailing` continuation bytes, the first within [low, high].
struct LeadByte {
  int trailing;  // -1 = not a lead byte
  uint8_t low;
  uint8_t high;
};

LeadByte Classify(uint8_t byte) {
  if (byte < 0x80) return {0, 0, 0};
  if (byte < 0xC2 || byte > 0xF4) return {-1, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};  // no overlong forms
  if (byte == 0xED) return {2, 0x80, 0x9F};  // no surrogates
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};  // no overlong forms
  if (byte == 0xF4) return {3, 0x80, 0x8F};  // nothing above U+10FFFF
  return {3, 0x80, 0xBF};
}

bool IsContinuation(char c) { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

}  // namespace

Utf8Unit NextUtf8(std::string_view text) {
  const LeadByte lead = Classify(static_cast<uint8_t>(text[0]));
  if (lead.trailing < 0) return {Utf8Unit::kMalformed, 1};
  for (int i = 1; i <= lead.trailing; ++i) {
    const auto length = static_cast<uint8_t>(i);
    if (static_cast<size_t>(i) >= text.size()) return {Utf8Unit::kIncomplete, length};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {Utf8Unit::kMalformed, length};
  }
  return {Utf8Unit::kCharacter, static_cast<uint8_t>(lead.trailing + 1)};
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = NextUtf8(text);
    if (unit.kind != Utf8Unit::kCharacter) return false;
    text.remove_prefix(unit.length);
  }
  return true;
}

size_t IncompleteUtf8Tail(std::string_view text) {
  const size_t furthest = std::min<size_t>(text.size(), 3);
  for (size_t back = 1; back <= furthest; ++back) {
    if (IsContinuation(text[text.size() - back])) continue;
    const Utf8Unit unit = NextUtf8(text.substr(text.size() - back));
    return unit.kind == Utf8Unit::kIncomplete ? back : 0;
  }
  return 0;
}

std::string ShownText(std::string_view text, size_t max_bytes) {
  std::string shown;
  while (!text.empty()) {
    const Utf8Unit unit = NextUtf8(text);
    const bool whole = unit.kind == Utf8Unit::kCharacter;
    const std::string_view next = whole ? text.substr(0, unit.length) : kReplacementCharacter;
    if (shown.size() + next.size() > max_bytes) return shown + "\xE2\x80\xA6";
    shown += next;
    text.remove_prefix(unit.length);
  }
  return shown;
}

}  // namespace slipstream
