// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/detokenizer.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "executor/text_cleanup.h"
#include "executor/utf8.h"

namespace slipstream {
namespace {

using Json = nlohmann::json;

const std::string kBad = "\xEF\xBF\xBD";

Json Binary(const std::string& bytes) {
  return Json::binary(std::vector<uint8_t>(bytes.begin(), bytes.end()));
}

std::string Offsets(const std::vector<std::string>& pieces) {
  std::string bytes(4, '\0');
  uint32_t end = 0;
  for (const std::string& piece : pieces) {
    end += static_cast<uint32_t>(piece.size());
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(end >> shift & 0xFF);
  }
  return bytes;
}

std::string Join(const std::vector<std::string>& pieces) {
  std::string joined;
  for (const std::string& piece : pieces) joined += piece;
  return joined;
}

Json Table(const std::string& joiner, const std::vector<std::string>& pieces,
           std::string flags = "") {
  if (flags.empty()) flags.assign(pieces.size(), '\1');
  return {{"format", "slipstream.token_table"},
          {"version", 1},
          {"joiner", joiner},
          {"count", pieces.size()},
          {"flags", Binary(flags)},
          {"offsets", Binary(Offsets(pieces))},
          {"data", Binary(Join(pieces))}};
}

StatusOr<std::shared_ptr<const TokenTable>> Load(const Json& blob) {
  const auto bytes = Json::to_msgpack(blob);
  return TokenTable::FromMsgpack({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// One string per token, then what Flush() appends.
std::vector<std::string> Chunks(const Json& blob, const std::vector<int32_t>& tokens,
                                bool skip = true) {
  const auto table = Load(blob);
  REQUIRE_MESSAGE(table.ok(), table.status().message());
  Detokenizer detokenizer(*table, skip);
  std::vector<std::string> chunks;
  for (const int32_t token : tokens) {
    chunks.emplace_back();
    detokenizer.Append(token, &chunks.back());
  }
  chunks.emplace_back();
  detokenizer.Flush(&chunks.back());
  CHECK(Join(chunks) == Detokenizer::Decode(*table, tokens.data(), tokens.size(), skip));
  for (const std::string& chunk : chunks) CHECK(IsValidUtf8(chunk));
  return chunks;
}

using Strings = std::vector<std::string>;

TEST_CASE("utf8: units are the maximal subparts of the standard") {
  const auto check = [](std::string_view text, Utf8Unit::Kind kind, int length) {
    const Utf8Unit unit = NextUtf8(text);
    CHECK(unit.kind == kind);
    CHECK(unit.length == length);
  };
  check("a", Utf8Unit::kCharacter, 1);
  check("\xC3\xA9x", Utf8Unit::kCharacter, 2);
  check("\xED\x9F\xBF", Utf8Unit::kCharacter, 3);
  check("\xF4\x8F\xBF\xBF", Utf8Unit::kCharacter, 4);
  check("\x80", Utf8Unit::kMalformed, 1);
  check("\xC0\x80", Utf8Unit::kMalformed, 1);          // overlong
  check("\xE0\x9F\x80", Utf8Unit::kMalformed, 1);      // overlong
  check("\xED\xA0\x80", Utf8Unit::kMalformed, 1);      // surrogate
  check("\xF4\x90\x80\x80", Utf8Unit::kMalformed, 1);  // above U+10FFFF
  check("\xF5\x80", Utf8Unit::kMalformed, 1);
  check("\xF0\x9F\x98x", Utf8Unit::kMalformed, 3);
  check("\xF0\x9F\x98", Utf8Unit::kIncomplete, 3);
  check("\xE2", Utf8Unit::kIncomplete, 1);
  CHECK(IncompleteUtf8Tail("") == 0);
  CHECK(IncompleteUtf8Tail("a\xE2\x82") == 2);
  CHECK(IncompleteUtf8Tail("a\xE2\x82\xAC") == 0);
  CHECK(IncompleteUtf8Tail("\x82\x82\x82\x82") == 0);
  CHECK(IncompleteUtf8Tail("\xF0\x9F\x98") == 3);
}

TEST_CASE("detokenizer: byte-level holds an unfinished character and no more") {
  const Json table = Table("byte_level", {"a", "\xF0\x9F", "\x98", "\x80", " b\xE2", "\x82\xAC"});
  CHECK(Chunks(table, {0, 1, 2, 3}) == Strings{"a", "", "", "\xF0\x9F\x98\x80", ""});
  CHECK(Chunks(table, {4, 5, 0}) == Strings{" b", "\xE2\x82\xAC", "a", ""});
  CHECK(Chunks(table, {1, 0}) == Strings{"", kBad + "a", ""});
  CHECK(Chunks(table, {1, 1, 2}) == Strings{"", kBad, "", kBad});
  CHECK(Chunks(table, {3, 3, 1}) == Strings{kBad, kBad, "", kBad});
  CHECK(Chunks(table, {}) == Strings{""});
}

TEST_CASE("detokenizer: special tokens are skipped between the bytes of a character") {
  const Json table = Table("byte_level", {"\xC3", "\xA9", "<s>"}, "\1\1\3");
  CHECK(Chunks(table, {2, 0, 2, 1}) == Strings{"", "", "", "\xC3\xA9", ""});
  CHECK(Chunks(table, {2, 0, 2, 1}, false) == Strings{"<s>", "", kBad + "<s>", kBad, ""});
}

TEST_CASE("detokenizer: a run of byte tokens is text only as a whole") {
  const Json table =
      Table("byte_fallback", {"x", "\xC3", "\xA9", "!", "A"}, std::string("\1\x9\x9\1\x9", 5));
  CHECK(Chunks(table, {1, 2, 0}) == Strings{"", "", "\xC3\xA9x", ""});
  CHECK(Chunks(table, {1, 2, 1, 2}) == Strings{"", "", "", "", "\xC3\xA9\xC3\xA9"});
  CHECK(Chunks(table, {4, 1, 0}) == Strings{"", "", kBad + kBad + "x", ""});
  CHECK(Chunks(table, {4, 2, 1, 2, 3}) ==
        Strings{"", kBad + kBad, kBad, kBad, "!", ""});  // known to be bad: shown at once
  CHECK(Chunks(table, {2, 3, 1, 2, 0}) == Strings{kBad, "!", "", "", "\xC3\xA9x", ""});
  CHECK(Chunks(table, {0, 1}) == Strings{"x", "", kBad});
}

TEST_CASE("detokenizer: strips where the text begins, once") {
  Json table = Table("byte_fallback", {" ", " a", " "}, std::string("\1\1\x9", 3));
  table["strip_content"] = " ";
  table["strip_count"] = 1;
  CHECK(Chunks(table, {1, 1}) == Strings{"a", " a", ""});
  CHECK(Chunks(table, {0, 1}) == Strings{"", " a", ""});
  CHECK(Chunks(table, {2, 0, 1}) == Strings{"", " ", " a", ""});
  table["strip_count"] = 3;
  CHECK(Chunks(table, {0, 0, 1, 0}) == Strings{"", "", "a", " ", ""});
}

TEST_CASE("detokenizer: the first token has its own piece; skipped and unknown ids do not count") {
  Json table = Table("concat", {" a", "b", "</s>"}, "\1\1\3");
  const Strings first = {"a", "##b", "</s>"};
  table["first_offsets"] = Binary(Offsets(first));
  table["first_data"] = Binary(Join(first));
  CHECK(Chunks(table, {2, 77, 0, 0, 1}) == Strings{"", "", "a", " a", "b", ""});
  CHECK(Chunks(table, {2, 0}, false) == Strings{"</s>", " a", ""});
  CHECK(Chunks(table, {-1, 1, 1}) == Strings{"", "##b", "b", ""});
}

TEST_CASE("detokenizer: is as new after a flush") {
  Json table = Table("byte_level", {" ", "\xC3", "x"});
  table["strip_content"] = " ";
  table["strip_count"] = 1;
  Detokenizer detokenizer(*Load(table), true);
  for (int round = 0; round < 2; ++round) {
    std::string out;
    for (const int32_t token : {0, 0, 2, 1}) detokenizer.Append(token, &out);
    detokenizer.Flush(&out);
    CHECK(out == " x" + kBad);
  }
}

TEST_CASE("detokenizer: no id crashes") {
  const Json table = Table("byte_level", {"a", "b"}, std::string("\1\0", 2));
  const int32_t least = std::numeric_limits<int32_t>::min();
  const int32_t most = std::numeric_limits<int32_t>::max();
  CHECK(Chunks(table, {least, -1, 0, 1, 2, most}) == Strings{"", "", "a", "", "", "", ""});
  CHECK(Chunks(Table("concat", {}, ""), {0, 1, -1}) == Strings{"", "", "", ""});
}

std::string Cleaned(const Strings& pieces) {
  TextCleanup cleanup;
  std::string out;
  for (const std::string& piece : pieces) cleanup.Push(piece, &out);
  cleanup.Flush(&out);
  return out;
}

TEST_CASE("cleanup: each replacement works on the result of the one before") {
  CHECK(Cleaned({"a ", ". b", " ", "!"}) == "a. b!");
  CHECK(Cleaned({"do", " n", "'", "t ", "x"}) == "don't x");
  CHECK(Cleaned({"do n'", "x"}) == "do n'x");
  CHECK(Cleaned({"  .  ,"}) == " . ,");
  CHECK(Cleaned({"a ' b"}) == "a'b");
  CHECK(Cleaned({"a ' .b"}) == "a '.b");
  CHECK(Cleaned({"i 've we 're it 's 'm '"}) == "i've we're it's'm '");
  CHECK(Cleaned({"ends "}) == "ends ");
}

TEST_CASE("token table: refuses malformed blobs, naming the entry") {
  const auto error = [](const Json& blob) { return Load(blob).status().message(); };
  const auto with = [](const std::string& key, const Json& value) {
    Json blob = Table("byte_fallback", {"a", "b"}, std::string("\1\x9", 2));
    if (value.is_null()) {
      blob.erase(key);
    } else {
      blob[key] = value;
    }
    return blob;
  };
  REQUIRE(Load(with("cleanup", true)).ok());
  CHECK(error(with("format", "x")) == "token table: format is 'x', not 'slipstream.token_table'");
  CHECK(error(with("version", 2)) == "token table: version is 2; this build reads version 1");
  CHECK(error(with("joiner", "z")) ==
        "token table: joiner is 'z', not concat, byte_level or byte_fallback");
  CHECK(error(with("count", -3)) == "token table: count is -3, not within 0..16777216");
  CHECK(error(with("count", int64_t{1} << 40)) ==
        "token table: count is 1099511627776, not within 0..16777216");
  CHECK(error(with("count", 3)) == "token table: flags has 2 bytes, count is 3");
  CHECK(error(with("flags", Binary("\1\x20"))) == "token table: flags[1] is 32");
  CHECK(error(with("flags", Binary("\1\2"))) == "token table: flags[1] is 2");
  CHECK(error(with("data", Json())) == "token table: offsets or data is missing");
  CHECK(error(with("offsets", Binary("\0"))) == "token table: offsets has 0 bytes, expected 12");
  CHECK(error(with("offsets", Binary(Offsets({"a", "bb"})))) == "token table: offsets[2] is 3");
  CHECK(error(with("offsets", Binary(std::string("\0\0\0\0\2\0\0\0\1\0\0\0", 12)))) ==
        "token table: offsets[2] is 1");
  CHECK(error(with("offsets", Binary(Offsets({"", "ab"})))) ==
        "token table: data of token 1 is not one byte");
  CHECK(error(with("data", Binary("\xFF"
                                  "b"))) == "token table: data of token 0 is not UTF-8");
  CHECK(error(with("first_data", Binary("ab"))) ==
        "token table: first_offsets or first_data is missing");
  CHECK(error(with("strip_count", 1)) == "token table: strip_content is not one character");
  CHECK(error(with("strip_count", -1)) == "token table: strip_count is -1, not within 0..65536");
  CHECK(error(with("surprise", 1)) == "token table: unknown or mistyped entry 'surprise'");
  CHECK(error(with("cleanup", "yes")) == "token table: unknown or mistyped entry 'cleanup'");
  CHECK(error(with("cleanup", 0.5)) == "token table: float (near 'cleanup')");
  CHECK(error(with("cleanup", Json::array())) == "token table: array (near 'cleanup')");
  CHECK(error(with("cleanup", Json::object())) == "token table: nested map (near 'cleanup')");
  CHECK(error(Json(3)) == "token table: not a map");
}

TEST_CASE("token table: survives every truncation and every changed byte") {
  Json blob = Table("byte_fallback", {"a", "b", "\xC3\xA9"}, std::string("\1\x9\3", 3));
  blob["first_offsets"] = Binary(Offsets({"a", "b", "c"}));
  blob["first_data"] = Binary("abc");
  blob["strip_content"] = " ";
  blob["strip_count"] = 1;
  const auto good = Json::to_msgpack(blob);
  const auto decode_all = [](const std::vector<uint8_t>& bytes) {
    const auto table =
        TokenTable::FromMsgpack({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!table.ok()) return false;
    const std::vector<int32_t> tokens = {0, 1, 2, 3, 1, 0, 2};
    CHECK(IsValidUtf8(Detokenizer::Decode(*table, tokens.data(), tokens.size(), false)));
    return true;
  };
  CHECK(decode_all(good));
  for (size_t size = 0; size < good.size(); ++size) {
    CHECK_FALSE(decode_all(std::vector<uint8_t>(good.begin(), good.begin() + size)));
  }
  for (size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      auto bytes = good;
      bytes[at] = static_cast<uint8_t>(value);
      decode_all(bytes);
    }
  }
  CHECK_FALSE(decode_all(std::vector<uint8_t>(1 << 20, 0x91)));  // a million nested arrays
  CHECK_FALSE(decode_all(std::vector<uint8_t>(1 << 20, 0x81)));  // or maps
  CHECK_FALSE(decode_all({0x81, 0xA1, 'k', 0xC6, 0xFF, 0xFF, 0xFF, 0xFF}));  // 4 GiB claimed
}

}  // namespace
}  // namespace slipstream
