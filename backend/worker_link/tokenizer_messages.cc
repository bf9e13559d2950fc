// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/tokenizer_messages.h"

#include <cstring>
#include <limits>

#include "worker_link/child_link.h"

namespace slipstream {
namespace {

using nlohmann::json;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

Status Malformed() { return Status::Internal("the tokenizer process's reply is malformed"); }

bool ReadIds(const json& value, std::vector<int32_t>* ids) {
  if (!value.is_binary() || value.get_binary().size() % sizeof(int32_t) != 0) return false;
  const auto& bytes = value.get_binary();
  ids->resize(bytes.size() / sizeof(int32_t));
  if (!bytes.empty()) std::memcpy(ids->data(), bytes.data(), bytes.size());
  return true;
}

Status ReadError(const json& error) {
  if (!error.is_object() || !error.contains("code") || !error.contains("message") ||
      !error["message"].is_string()) {
    return Malformed();
  }
  const auto message = error["message"].get<std::string>();
  if (error["code"] == "invalid_argument") return Status::InvalidArgument(message);
  if (error["code"] == "unsupported") return Status::Unsupported(message);
  return Status::Internal(message);
}

}  // namespace

json ToMap(const TokenizerRequest& request) {
  json map = {{"add_special_tokens", request.add_special_tokens}, {"words", request.words}};
  if (request.text) map["text"] = *request.text;
  if (!request.messages.is_null()) map["messages"] = request.messages;
  if (!request.chat.is_null()) map["chat"] = request.chat;
  if (request.allow_special) map["allow_special"] = *request.allow_special;
  return map;
}

StatusOr<TokenizerInfo> ParseTokenizerHello(const json& hello) {
  MapReader read(hello, "the tokenizer process's HELLO");
  TokenizerInfo info;
  info.vocab_size = static_cast<int32_t>(read.Integer("vocab_size", 1, kInt32Max));
  info.eos_id = static_cast<int32_t>(read.Integer("eos_id", -1, kInt32Max));
  info.pad_id = static_cast<int32_t>(read.Integer("pad_id", -1, kInt32Max));
  info.bos_id = static_cast<int32_t>(read.Integer("bos_id", -1, kInt32Max));
  info.has_chat_template = read.Boolean("has_chat_template");
  info.token_table = read.Bytes("token_table");
  if (!read.status().ok()) return read.status();
  return info;
}

Status CheckReplyId(const json& map, int64_t id) {
  const auto found = map.find("id");
  return found != map.end() && *found == id ? Status::Ok() : Malformed();
}

StatusOr<TokenizerReply> ParseTokenizerReply(const json& map, const TokenizerRequest& request) {
  if (const auto error = map.find("error"); error != map.end()) return ReadError(*error);
  TokenizerReply reply;
  const auto ids = map.find("ids");
  const auto words = map.find("words");
  if (ids == map.end() || !ReadIds(*ids, &reply.ids) || words == map.end() || !words->is_object() ||
      words->size() != request.words.size()) {
    return Malformed();
  }
  for (const auto& [name, asked] : request.words) {
    const auto list = words->find(name);
    if (list == words->end() || !list->is_array() || list->size() != asked.size()) {
      return Malformed();
    }
    auto& target = reply.words[name];
    target.resize(list->size());
    for (size_t i = 0; i < list->size(); ++i) {
      if (!ReadIds((*list)[i], &target[i])) return Malformed();
    }
  }
  return reply;
}

}  // namespace slipstream
