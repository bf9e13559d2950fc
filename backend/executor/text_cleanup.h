// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace slipstream {

// transformers' clean_up_tokenization_spaces on a stream of text: a fixed list of replacements
// (" ." -> ".", " n't" -> "n't", ...), each made over the whole result of the one before it.
//
// A replacement can be undecided for the few ASCII bytes of its pattern that were seen last; only
// those are held, so whole characters in give whole characters out.
class TextCleanup {
 public:
  void Push(std::string_view text, std::string* out);
  void Flush(std::string* out);  // the text ends: what is held is decided

 private:
  static constexpr int kStages = 10;

  void PushByte(int stage, char byte, std::string* out);
  void PushText(int stage, std::string_view text, std::string* out);

  std::array<uint8_t, kStages> matched_ = {};  // bytes of each stage's pattern seen last
  int undecided_ = 0;                          // stages with matched_ > 0
};

}  // namespace slipstream
