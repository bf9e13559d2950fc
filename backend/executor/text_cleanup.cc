// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/text_cleanup.h"

#include <cstddef>

namespace slipstream {
namespace {

struct Replacement {
  std::string_view pattern;  // begins with a space
  std::string_view content;
};

// In the order in which transformers applies them.
constexpr std::array<Replacement, 10> kReplacements = {{{" .", "."},
                                                        {" ?", "?"},
                                                        {" !", "!"},
                                                        {" ,", ","},
                                                        {" ' ", "'"},
                                                        {" n't", "n't"},
                                                        {" 'm", "'m"},
                                                        {" 's", "'s"},
                                                        {" 've", "'ve"},
                                                        {" 're", "'re"}}};

}  // namespace

void TextCleanup::Push(std::string_view text, std::string* out) {
  static_assert(kReplacements.size() == kStages);
  while (!text.empty()) {
    if (undecided_ == 0) {  // nothing can begin before the next space
      const size_t plain = text.find(' ');
      out->append(text.substr(0, plain));
      if (plain == std::string_view::npos) return;
      text.remove_prefix(plain);
    }
    PushByte(0, text[0], out);
    text.remove_prefix(1);
  }
}

// One step of a pattern matcher. No proper prefix of a pattern has a border, so after a mismatch
// a match can only begin with the byte at hand.
void TextCleanup::PushByte(int stage, char byte, std::string* out) {
  if (stage == kStages) {
    out->push_back(byte);
    return;
  }
  const Replacement& replacement = kReplacements[stage];
  uint8_t& matched = matched_[stage];
  if (byte == replacement.pattern[matched]) {
    undecided_ += matched == 0;
    if (++matched < replacement.pattern.size()) return;
    matched = 0;
    --undecided_;
    PushText(stage + 1, replacement.content, out);
    return;
  }
  if (matched > 0) {
    const std::string_view held = replacement.pattern.substr(0, matched);
    matched = byte == replacement.pattern[0] ? 1 : 0;
    undecided_ -= matched == 0;
    PushText(stage + 1, held, out);
    if (matched == 1) return;
  }
  PushByte(stage + 1, byte, out);
}

void TextCleanup::PushText(int stage, std::string_view text, std::string* out) {
  for (const char byte : text) PushByte(stage, byte, out);
}

void TextCleanup::Flush(std::string* out) {
  for (int stage = 0; stage < kStages; ++stage) {
    const std::string_view held = kReplacements[stage].pattern.substr(0, matched_[stage]);
    matched_[stage] = 0;
    PushText(stage + 1, held, out);
  }
  undecided_ = 0;
}

}  // namespace slipstream
