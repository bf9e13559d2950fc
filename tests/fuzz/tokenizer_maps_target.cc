// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "input_bytes.h"
#include "targets.h"
#include "worker_link/channel.h"
#include "worker_link/tokenizer_messages.h"

namespace slipstream::fuzz {
namespace {

using nlohmann::json;

TokenizerRequest Asked() {
  TokenizerRequest request;
  request.text = "a fox";
  request.words = {{"bad", {"ab"}}, {"bias", {}}, {"stop", {"x", "yz"}}};
  return request;
}

void Run(const uint8_t* data, size_t size) {
  const auto map = ParseMap({FrameType::kReply, data, size});
  if (!map.ok()) return;
  Require(!CheckReplyId(*map, 1).ok() || map->at("id") == 1, "the answer to what was asked");
  const auto info = ParseTokenizerHello(*map);
  if (info.ok()) {
    Require(info->vocab_size >= 1, "there is a token");
    Require(info->eos_id >= -1 && info->pad_id >= -1 && info->bos_id >= -1, "ids, or -1");
  } else {
    Require(info.status().code() == StatusCode::kInternal, "a wrong HELLO is our fault");
  }
  const TokenizerRequest asked = Asked();
  const auto reply = ParseTokenizerReply(*map, asked);
  if (!reply.ok()) return;
  Require(reply->words.size() == asked.words.size(), "a list for each that was asked for");
  for (const auto& [name, words] : asked.words) {
    Require(reply->words.at(name).size() == words.size(), "an entry for each word");
  }
}

std::string Packed(const json& map) {
  const std::vector<uint8_t> bytes = json::to_msgpack(map);
  return {bytes.begin(), bytes.end()};
}

json Ids(const std::vector<int32_t>& ids) {
  const std::string bytes = BytesOf(ids);
  return json::binary(std::vector<uint8_t>(bytes.begin(), bytes.end()));
}

std::vector<std::string> Seeds() {
  const json words = {{"bad", {Ids({5})}}, {"bias", json::array()}, {"stop", {Ids({6}), Ids({})}}};
  const json error = {{"code", "invalid_argument"}, {"message", "text is wrong"}};
  return {Packed({{"vocab_size", 256},
                  {"eos_id", 2},
                  {"pad_id", -1},
                  {"bos_id", 1},
                  {"has_chat_template", true},
                  {"token_table", json::binary({1, 2})}}),
          Packed({{"id", 1}, {"ids", Ids({1, 2, 3})}, {"words", words}}),
          Packed({{"id", 1}, {"error", error}}), Packed(ToMap(Asked()))};
}

}  // namespace

FuzzTarget TokenizerMapsTarget() { return {"tokenizer_maps", Run, Seeds}; }

}  // namespace slipstream::fuzz
