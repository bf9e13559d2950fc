// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "executor/status.h"

namespace slipstream {

struct TokenizerInfo {
  int32_t vocab_size = 0;  // added tokens included
  int32_t eos_id = -1;     // -1 = none; so below
  int32_t pad_id = -1;     // the end id where the tokenizer has no padding token
  int32_t bos_id = -1;
  bool has_chat_template = false;
  std::string token_table;  // msgpack for TokenTable::FromMsgpack; empty: not exportable
};

// Exactly one of `text` and `messages` is given.
struct TokenizerRequest {
  std::optional<std::string> text;
  nlohmann::json messages;  // [{"role": ..., "content": ..., ...}, ...]
  // Optional keys: tools, add_generation_prompt (default: unless continue_final_message),
  // continue_final_message, template_kwargs.
  nlohmann::json chat;
  bool add_special_tokens = true;  // with `text`: what the tokenizer puts around a prompt
  // Does text that spells a special token become one? Default: in `text` yes, as in
  // `tokenizer(text)`; in messages no, only the template writes special tokens.
  std::optional<bool> allow_special;
  // Lists of words to tokenize, each on its own and without tokens around it.
  std::map<std::string, std::vector<std::string>> words;
};

struct TokenizerReply {
  std::vector<int32_t> ids;
  std::map<std::string, std::vector<std::vector<int32_t>>> words;  // as many as were asked for
};

// The msgpack maps between here and a tokenizer process; ToMap is without the id that goes with it.

nlohmann::json ToMap(const TokenizerRequest& request);

// kInternal names the key at fault.
StatusOr<TokenizerInfo> ParseTokenizerHello(const nlohmann::json& hello);

// kInternal unless a REPLY is the one to the REQUEST with this id.
Status CheckReplyId(const nlohmann::json& map, int64_t id);

// The answer to `request`. kInvalidArgument and kUnsupported are the process's own words on the
// request; kInternal: it failed, or its answer is none.
StatusOr<TokenizerReply> ParseTokenizerReply(const nlohmann::json& map,
                                             const TokenizerRequest& request);

}  // namespace slipstream
