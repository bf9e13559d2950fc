// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/detokenizer.h"

#include <utility>

#include "executor/utf8.h"

namespace slipstream {

Detokenizer::Detokenizer(std::shared_ptr<const TokenTable> table, bool skip_special_tokens)
    : table_(std::move(table)),
      skip_special_tokens_(skip_special_tokens),
      plain_(table_->strip_count() == 0 && !table_->cleanup()),
      strip_left_(table_->strip_count()) {}

void Detokenizer::Append(int32_t token, std::string* out) {
  const uint8_t flags = table_->flags(token);
  if (flags == 0 || (skip_special_tokens_ && (flags & kTokenSpecial) != 0)) return;
  const std::string_view piece = first_ ? table_->first_piece(token) : table_->piece(token);
  const bool whole = !first_ && (flags & kTokenWhole) != 0;
  first_ = false;
  switch (table_->joiner()) {
    case PieceJoiner::kConcat:
      Settle(piece, out);
      return;
    case PieceJoiner::kByteLevel:
      if (whole && tail_size_ == 0) {
        Settle(piece, out);
      } else {
        AppendBytes(piece, out);
      }
      return;
    case PieceJoiner::kByteFallback:
      if ((flags & kTokenByte) != 0) {
        AppendRunByte(piece[0], out);
      } else {
        if (!run_.empty()) EndRun(out);
        Settle(piece, out);
      }
      return;
  }
}

void Detokenizer::AppendBytes(std::string_view bytes, std::string* out) {
  while (tail_size_ > 0 && !bytes.empty()) {
    tail_[tail_size_] = bytes[0];
    const Utf8Unit unit = NextUtf8({tail_, tail_size_ + size_t{1}});
    if (unit.kind == Utf8Unit::kMalformed) {  // the new byte does not belong to the tail
      tail_size_ = 0;
      Settle(kReplacementCharacter, out);
      break;
    }
    ++tail_size_;
    bytes.remove_prefix(1);
    if (unit.kind == Utf8Unit::kCharacter) {
      Settle({tail_, std::exchange(tail_size_, uint8_t{0})}, out);
    }
  }
  while (!bytes.empty()) {
    size_t good = 0;
    Utf8Unit unit = {Utf8Unit::kCharacter, 0};
    while (good < bytes.size()) {
      unit = NextUtf8(bytes.substr(good));
      if (unit.kind != Utf8Unit::kCharacter) break;
      good += unit.length;
    }
    Settle(bytes.substr(0, good), out);
    bytes.remove_prefix(good);
    if (bytes.empty()) return;
    if (unit.kind == Utf8Unit::kIncomplete) {
      tail_size_ = static_cast<uint8_t>(bytes.copy(tail_, unit.length));
      return;
    }
    Settle(kReplacementCharacter, out);
    bytes.remove_prefix(unit.length);
  }
}

void Detokenizer::AppendRunByte(char byte, std::string* out) {
  if (run_is_bad_) {
    Settle(kReplacementCharacter, out);
    return;
  }
  run_.push_back(byte);
  const Utf8Unit unit = NextUtf8(std::string_view(run_).substr(run_checked_));
  if (unit.kind == Utf8Unit::kCharacter) run_checked_ = run_.size();
  if (unit.kind != Utf8Unit::kMalformed) return;
  run_is_bad_ = true;
  for (size_t i = 0; i < run_.size(); ++i) Settle(kReplacementCharacter, out);
}

void Detokenizer::EndRun(std::string* out) {
  if (!run_is_bad_ && run_checked_ == run_.size()) {
    Settle(run_, out);
  } else if (!run_is_bad_) {  // it ends inside a character
    for (size_t i = 0; i < run_.size(); ++i) Settle(kReplacementCharacter, out);
  }
  run_.clear();
  run_checked_ = 0;
  run_is_bad_ = false;
}

// `text` is final as far as the tokens go: whole characters of the joined pieces.
void Detokenizer::Settle(std::string_view text, std::string* out) {
  if (plain_) {
    out->append(text);
    return;
  }
  const std::string& content = table_->strip_content();
  while (strip_left_ > 0 && !text.empty()) {
    if (text.compare(0, content.size(), content) != 0) {
      strip_left_ = 0;
    } else {
      text.remove_prefix(content.size());
      --strip_left_;
    }
  }
  if (table_->cleanup()) {
    cleanup_.Push(text, out);
  } else {
    out->append(text);
  }
}

void Detokenizer::Flush(std::string* out) {
  EndRun(out);
  if (tail_size_ > 0) Settle(kReplacementCharacter, out);
  tail_size_ = 0;
  cleanup_.Flush(out);
  first_ = true;
  strip_left_ = table_->strip_count();
}

std::string Detokenizer::Decode(const std::shared_ptr<const TokenTable>& table,
                                const int32_t* tokens, size_t count, bool skip_special_tokens) {
  Detokenizer detokenizer(table, skip_special_tokens);
  std::string text;
  for (size_t i = 0; i < count; ++i) detokenizer.Append(tokens[i], &text);
  detokenizer.Flush(&text);
  return text;
}

}  // namespace slipstream
