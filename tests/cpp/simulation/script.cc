// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/script.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "executor/utf8.h"
#include "worker_link/scripted_model.h"

namespace slipstream::simulation {
namespace {

using Json = nlohmann::json;

// Letters, a special token, whole characters, and characters in parts that rarely fit together.
const std::string_view kByteLevelPieces[] = {
    "a",    "\xE2\x82", " b",           "\xAC", "</s>",   "ab",
    "\xC3", "\xA9 ",    "\xF0\x9F\x98", "\x80", "ba\xE2", "\xE2\x82\xAC"};
const std::string_view kByteFallbackPieces[] = {
    "a", "\xE2", "\x82", "\xAC", "</s>", "ab", "\xC3", "\xA9", " b", "\xFF", "b", "\xE2\x82\xAC"};

Json Binary(const std::string& bytes) {
  return Json::binary(std::vector<uint8_t>(bytes.begin(), bytes.end()));
}

bool BeginsCharacters(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = NextUtf8(text);
    if (unit.kind == Utf8Unit::kMalformed) return false;
    text.remove_prefix(unit.length);
  }
  return true;
}

std::string Repeat(std::string_view what, size_t times) {
  std::string text;
  for (size_t i = 0; i < times; ++i) text += what;
  return text;
}

}  // namespace

Script::Script(int32_t vocab_size, PieceJoiner joiner) : joiner_(joiner) {
  const bool fallback = joiner == PieceJoiner::kByteFallback;
  const auto& pieces = fallback ? kByteFallbackPieces : kByteLevelPieces;
  constexpr int32_t kCount = std::size(kByteLevelPieces);
  static_assert(std::size(kByteFallbackPieces) == kCount);
  for (int32_t id = 0; id < vocab_size; ++id) {
    std::string piece(pieces[id % kCount]);
    uint8_t flags = kTokenPresent;
    if (piece == "</s>") flags |= kTokenSpecial | kTokenAdded;
    if (fallback && piece.size() == 1 && static_cast<uint8_t>(piece[0]) >= 0x80) {
      flags |= kTokenByte;
    } else if (id >= kCount && flags == kTokenPresent) {
      piece += static_cast<char>('a' + id / kCount % 26);
    }
    pieces_.push_back(piece);
    flags_ += static_cast<char>(flags);
  }
}

std::string Script::TokenTableBytes() const {
  std::string offsets(4, '\0'), data;
  for (const std::string& piece : pieces_) {
    data += piece;
    for (int shift = 0; shift < 32; shift += 8) {
      offsets += static_cast<char>(data.size() >> shift & 0xFF);
    }
  }
  const bool fallback = joiner_ == PieceJoiner::kByteFallback;
  const Json table = {{"format", "slipstream.token_table"},
                      {"version", 1},
                      {"joiner", fallback ? "byte_fallback" : "byte_level"},
                      {"count", pieces_.size()},
                      {"flags", Binary(flags_)},
                      {"offsets", Binary(offsets)},
                      {"data", Binary(data)}};
  const std::vector<uint8_t> bytes = Json::to_msgpack(table);
  return {bytes.begin(), bytes.end()};
}

int32_t Script::Token(const RequestSpec& spec, int32_t sequence, int32_t index) const {
  const uint64_t seed = Mix64(spec.sampling.seed, static_cast<uint64_t>(sequence));
  int32_t token = SeededToken(seed, index, vocab_size());
  const std::vector<int32_t>& ends = spec.end_ids;
  for (size_t i = 0; i < ends.size() && index < spec.sampling.min_tokens; ++i) {
    if (std::find(ends.begin(), ends.end(), token) == ends.end()) break;
    token = (token + 1) % vocab_size();
  }
  return token;
}

std::string Script::Text(const std::vector<int32_t>& tokens, size_t count,
                         bool skip_special) const {
  return Read(tokens, count, skip_special, /*open=*/false);
}

std::string Script::Settled(const std::vector<int32_t>& tokens, size_t count,
                            bool skip_special) const {
  return Read(tokens, count, skip_special, /*open=*/true);
}

// A run of bytes: all of them (byte level), or those of byte tokens in a row (byte fallback).
std::string Script::Read(const std::vector<int32_t>& tokens, size_t count, bool skip_special,
                         bool open) const {
  std::string text, run;
  for (size_t i = 0; i < count; ++i) {
    const auto flags = static_cast<uint8_t>(flags_[tokens[i]]);
    if (skip_special && (flags & kTokenSpecial) != 0) continue;
    if (joiner_ == PieceJoiner::kByteFallback && (flags & kTokenByte) == 0) {
      text += ReadRun(run, /*open=*/false) + pieces_[tokens[i]];
      run.clear();
    } else {
      run += pieces_[tokens[i]];
    }
  }
  return text + ReadRun(run, open);
}

std::string Script::ReadRun(const std::string& run, bool open) const {
  if (joiner_ == PieceJoiner::kByteFallback) {
    if (!BeginsCharacters(run)) return Repeat(kReplacementCharacter, run.size());
    if (open) return "";
    return IsValidUtf8(run) ? run : Repeat(kReplacementCharacter, run.size());
  }
  std::string text;
  for (std::string_view rest = run; !rest.empty();) {
    const Utf8Unit unit = NextUtf8(rest);
    if (unit.kind == Utf8Unit::kIncomplete && open) break;
    const bool whole = unit.kind == Utf8Unit::kCharacter;
    text += whole ? rest.substr(0, unit.length) : kReplacementCharacter;
    rest.remove_prefix(unit.length);
  }
  return text;
}

void Script::AppendLogprobs(int32_t token, int32_t index, int32_t most_likely,
                            std::vector<int32_t>* ids, std::vector<float>* values) const {
  const float own = -static_cast<float>(1 + index % 8) / 8;
  ids->push_back(token);
  values->push_back(own);
  for (int32_t j = 0; j < most_likely; ++j) {
    ids->push_back((token + j) % vocab_size());
    values->push_back(own - static_cast<float>(j) / 8);
  }
}

void Script::AppendLogits(int32_t position, int32_t sampled, std::vector<float>* logits) const {
  for (int32_t v = 0; v < vocab_size(); ++v) {
    const int64_t mixed = (31 * int64_t{position} + 7 * v) % 1024;
    logits->push_back(v == sampled ? 16.0f : static_cast<float>(mixed) / 64);
  }
}

}  // namespace slipstream::simulation
