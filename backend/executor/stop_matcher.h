// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "executor/aho_corasick.h"
#include "executor/status.h"

namespace slipstream {

// The stop strings of one request. Immutable; its sequences share it.
class StopStrings {
 public:
  // kInvalidArgument, naming the entry, for one that is empty or not UTF-8.
  static StatusOr<std::shared_ptr<const StopStrings>> Create(std::vector<std::string> strings,
                                                             bool include_in_output);

  const std::vector<std::string>& strings() const { return strings_; }
  bool include_in_output() const { return include_in_output_; }

 private:
  friend class StopMatcher;
  StopStrings(std::vector<std::string> strings, bool include_in_output);

  const std::vector<std::string> strings_;
  const bool include_in_output_;
  const AhoCorasick<uint8_t> automaton_;
};

struct StopMatch {
  int32_t index = -1;  // which stop string; of equal ones the first
  uint64_t begin = 0;  // bytes of the text [begin, end) that matched
  uint64_t end = 0;
};

// Watches one stream of text for stop strings and passes on what is certain to be output.
//
// The match is the occurrence that ends first; of those ending at the same byte, the one that
// begins first. The output is the text before it (and with include_in_output the match itself);
// nothing after it. How the text is cut into Feed() calls makes no difference to either.
//
// Text that could be the beginning of a match is held back, so that nothing passed on is ever taken
// back: always the longest suffix that begins a stop string, and no more. Whole characters in give
// whole characters out; a character cut in two by the caller is held until it is complete.
class StopMatcher {
 public:
  explicit StopMatcher(std::shared_ptr<const StopStrings> stops);

  // Adds text; appends to `out` what has become certain. Once a match was returned the stream is
  // over: further calls do nothing.
  std::optional<StopMatch> Feed(std::string_view text, std::string* out);
  // The text ends without a match: appends what was held back.
  void Flush(std::string* out);

  bool stopped() const { return stopped_; }
  size_t held_bytes() const { return held_.size(); }

 private:
  std::shared_ptr<const StopStrings> stops_;
  AhoCorasick<uint8_t>::State state_ = AhoCorasick<uint8_t>::kStart;
  bool stopped_ = false;
  uint64_t fed_ = 0;  // bytes so far
  std::string held_;  // the last bytes of the text, not yet passed on
};

// Stop words as token sequences: finds the one that ends at the newest generated token.
class TokenStopSequences {
 public:
  using State = AhoCorasick<int32_t>::State;
  // kInvalidArgument, naming the entry, for an empty sequence.
  static StatusOr<std::shared_ptr<const TokenStopSequences>> Create(
      std::vector<std::vector<int32_t>> sequences);

  const std::vector<std::vector<int32_t>>& sequences() const { return sequences_; }

 private:
  friend class TokenStopMatcher;
  explicit TokenStopSequences(std::vector<std::vector<int32_t>> sequences);

  const std::vector<std::vector<int32_t>> sequences_;
  const AhoCorasick<int32_t> automaton_;
};

// Watches one stream of generated tokens. Amortized O(1) a token, whatever the sequences.
class TokenStopMatcher {
 public:
  explicit TokenStopMatcher(std::shared_ptr<const TokenStopSequences> stops);

  // Adds one token. Returns the index of the sequence that ends with it: of several the longest, of
  // equal ones the first. A match does not end the stream; the caller decides (min_tokens).
  std::optional<int32_t> Feed(int32_t token);

 private:
  std::shared_ptr<const TokenStopSequences> stops_;
  TokenStopSequences::State state_ = AhoCorasick<int32_t>::kStart;
};

}  // namespace slipstream
