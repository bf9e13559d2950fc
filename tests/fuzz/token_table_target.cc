// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/token_table.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "executor/detokenizer.h"
#include "executor/utf8.h"
#include "input_bytes.h"
#include "targets.h"

namespace slipstream::fuzz {
namespace {

using nlohmann::json;

// Tokens, one byte each where they fit, then the table.
void Run(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  const bool skip_special = in.Below(2) == 1;
  const std::string head = in.Text();
  const auto table = TokenTable::FromMsgpack(in.rest());
  if (!table.ok()) {
    Require(table.status().code() == StatusCode::kInvalidArgument, "a wrong table is the caller's");
    return;
  }
  std::vector<int32_t> tokens;
  for (const char byte : head) tokens.push_back(static_cast<int8_t>(byte));
  Detokenizer detokenizer(*table, skip_special);
  std::string text;
  for (const int32_t token : tokens) {
    std::string chunk;
    detokenizer.Append(token, &chunk);
    Require(IsValidUtf8(chunk), "a chunk is whole characters");
    text += chunk;
  }
  std::string last;
  detokenizer.Flush(&last);
  Require(IsValidUtf8(last), "the last chunk is whole characters");
  text += last;
  Require(text == Detokenizer::Decode(*table, tokens.data(), tokens.size(), skip_special),
          "the chunks, joined, are the text of all tokens");
  for (int32_t id = 0; id < (*table)->size(); ++id) {
    Require((*table)->piece(id).size() <= in.rest().size(), "a piece lies in the table");
  }
}

json Binary(const std::string& bytes) {
  return json::binary(std::vector<uint8_t>(bytes.begin(), bytes.end()));
}

std::string Seed(const char* joiner, const std::vector<std::string>& pieces,
                 const std::string& flags, const json& more = json::object()) {
  std::vector<uint32_t> offsets = {0};
  std::string joined;
  for (const std::string& piece : pieces) {
    joined += piece;
    offsets.push_back(static_cast<uint32_t>(joined.size()));
  }
  json map = {{"format", "slipstream.token_table"},
              {"version", 1},
              {"joiner", joiner},
              {"count", pieces.size()},
              {"flags", Binary(flags)},
              {"offsets", Binary(BytesOf(offsets))},
              {"data", Binary(joined)}};
  map.update(more);
  const std::vector<uint8_t> bytes = json::to_msgpack(map);
  return OutputBytes()
      .Byte(1)
      .Text(std::string("\x01\x02\x00\x03\x01\x04\x02\x02\xff", 9))
      .Raw({reinterpret_cast<const char*>(bytes.data()), bytes.size()})
      .bytes();
}

std::vector<std::string> Seeds() {
  const std::string plain(5, '\1');
  return {Seed("concat", {"a", "bc", " ", "\xC3\xA9", ""}, plain),
          Seed("byte_level", {"a", "\xC3", "\xA9", "\xF0\x9F", "\x98\x80"}, plain),
          Seed("byte_fallback", {"a", "\xE2", "\x82", "\xAC", "<s>"},
               std::string("\x01\x09\x09\x09\x03", 5)),
          Seed("concat", {" a", " b", " .", "n't", " '"}, plain, {{"cleanup", true}}),
          Seed("concat", {" a", " b", " ", "c", "d"}, plain,
               {{"strip_count", 1}, {"strip_content", " "}})};
}

}  // namespace

FuzzTarget TokenTableTarget() { return {"token_table", Run, Seeds}; }

}  // namespace slipstream::fuzz
