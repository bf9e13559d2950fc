// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "executor/status.h"

namespace slipstream {

// How the pieces of consecutive tokens become text.
enum class PieceJoiner : uint8_t {
  kConcat,        // every piece is whole text
  kByteLevel,     // pieces are bytes; malformed sequences of the whole show as U+FFFD
  kByteFallback,  // like kConcat, but a run of byte tokens is text only if the whole run is UTF-8
};

// What a token is; combined as bits. 0 = the vocabulary has no such id.
enum TokenFlags : uint8_t {
  kTokenPresent = 1,
  kTokenSpecial = 2,  // left out of the text when special tokens are skipped
  kTokenAdded = 4,    // from the added tokens, not from the model's own vocabulary
  kTokenByte = 8,     // stands for one byte (kByteFallback only)
  kTokenWhole = 64,   // computed here: the piece is valid UTF-8 by itself
};

// The decoding side of one tokenizer: what each token id contributes to the text.
//
// Everything in a decoder that looks at one token alone is already applied to the pieces by the
// exporter (slipstream/tokenization/token_table.py), which also says how they join. Some decoders
// treat the first token of a text differently, so there may be two pieces per token.
//
// Immutable, so that any number of streams and threads share one.
class TokenTable {
 public:
  // Reads the exporter's msgpack map. The blob is not trusted: whatever it holds, the result is a
  // table that is safe to use, or kInvalidArgument that names the entry at fault. Keys:
  //   format "slipstream.token_table", version 1, joiner "concat"|"byte_level"|"byte_fallback",
  //   count n, flags [n bytes], offsets [n + 1 little-endian uint32], data [bytes];
  //   first_offsets, first_data: likewise for the first token, when that differs;
  //   strip_content, strip_count: drop up to strip_count such characters where the text begins;
  //   cleanup: apply transformers' clean_up_tokenization_spaces.
  static StatusOr<std::shared_ptr<const TokenTable>> FromMsgpack(std::string_view blob);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  PieceJoiner joiner() const { return joiner_; }

  // TokenFlags of any id at all; 0 for ids without a token.
  uint8_t flags(int32_t id) const {
    const auto index = static_cast<uint32_t>(id);
    return index < flags_.size() ? flags_[index] : 0;
  }
  // What `id` contributes after other tokens, and as the first one. `id` must be in [0, size()).
  std::string_view piece(int32_t id) const { return rest_.at(id); }
  std::string_view first_piece(int32_t id) const {
    return first_.offsets.empty() ? rest_.at(id) : first_.at(id);
  }

  const std::string& strip_content() const { return strip_content_; }  // one character
  int32_t strip_count() const { return strip_count_; }
  bool cleanup() const { return cleanup_; }

 private:
  friend class TokenTableReader;

  struct Pieces {
    std::string data;
    std::vector<uint32_t> offsets;  // size() + 1, non-decreasing, within data

    std::string_view at(int32_t id) const {
      const auto index = static_cast<size_t>(id);
      return {data.data() + offsets[index], offsets[index + 1] - offsets[index]};
    }
  };

  TokenTable() = default;

  PieceJoiner joiner_ = PieceJoiner::kConcat;
  std::vector<uint8_t> flags_;
  Pieces rest_;
  Pieces first_;  // empty when no decoder step distinguishes the first token
  std::string strip_content_;
  int32_t strip_count_ = 0;
  bool cleanup_ = false;
};

}  // namespace slipstream
