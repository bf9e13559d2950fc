// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace slipstream {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What the bytes at the start of a buffer are.
struct Utf8Unit {
  enum Kind : uint8_t {
    kCharacter,   // a well-formed character
    kMalformed,   // a maximal subpart of an ill-formed sequence: decoders show one U+FFFD for it
    kIncomplete,  // the whole rest of the buffer is the beginning of a well-formed character
  };
  Kind kind;
  uint8_t length;  // bytes, 1..4
};

// Classifies the first unit of `text`, which is not empty (Unicode 15, table 3-7).
Utf8Unit NextUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Bytes at the end of `text` that begin a character without completing it: 0..3.
size_t IncompleteUtf8Tail(std::string_view text);

// `text` for a message: well-formed, ill-formed parts shown as U+FFFD, and cut between characters
// where it is longer than `max_bytes`, which "…" tells (and adds to).
std::string ShownText(std::string_view text, size_t max_bytes);

}  // namespace slipstream
