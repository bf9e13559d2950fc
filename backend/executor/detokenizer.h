// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "executor/text_cleanup.h"
#include "executor/token_table.h"

namespace slipstream {

// Turns one stream of tokens into text.
//
// Contract: everything appended to `out` by Append() and the final Flush(), concatenated, equals
// the tokenizer's own decode of all tokens together; what one call appends is valid UTF-8 and ends
// between characters. Text is appended as soon as no later token can change it:
//   - byte-level: at most 3 bytes of an unfinished character wait;
//   - byte fallback: a run of byte tokens is decoded as a whole, and one bad byte turns all of it
//     into U+FFFD, so a run that is good so far waits until it ends (one byte of memory per token,
//     however long the run); once it is bad, every byte shows at once;
//   - clean-up of spaces: a few bytes that may be the beginning of a replacement wait.
//
// Cheap to make; not thread-safe. No allocation per token once `out` and the run buffer have grown.
class Detokenizer {
 public:
  Detokenizer(std::shared_ptr<const TokenTable> table, bool skip_special_tokens);

  // Adds one token; any id is allowed, those without a token contribute nothing.
  void Append(int32_t token, std::string* out);
  // Ends the text: appends what was waiting. The object is then as new, ready for another text.
  void Flush(std::string* out);

  static std::string Decode(const std::shared_ptr<const TokenTable>& table, const int32_t* tokens,
                            size_t count, bool skip_special_tokens);

 private:
  void AppendBytes(std::string_view bytes, std::string* out);
  void AppendRunByte(char byte, std::string* out);
  void EndRun(std::string* out);
  void Settle(std::string_view text, std::string* out);

  std::shared_ptr<const TokenTable> table_;
  const bool skip_special_tokens_;
  const bool plain_;  // settled text needs no stripping or clean-up
  bool first_ = true;
  bool run_is_bad_ = false;
  uint8_t tail_size_ = 0;
  char tail_[4] = {};       // byte-level: an unfinished character
  int32_t strip_left_ = 0;  // characters that may still be dropped where the text begins
  std::string run_;         // byte fallback: the run so far, while it is good
  size_t run_checked_ = 0;  // leading bytes of run_ that are whole characters
  TextCleanup cleanup_;
};

}  // namespace slipstream
