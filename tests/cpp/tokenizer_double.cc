// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_double.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker_link/channel.h"

namespace slipstream {
namespace {

using nlohmann::json;

constexpr int kLinkFd = 3;  // where a child finds its end
constexpr int64_t kTimeoutMs = 60000;

json Ids(const std::string& text) {
  std::vector<uint8_t> bytes;
  for (const char c : text) {
    const int32_t id = static_cast<unsigned char>(c);
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(id >> shift));
  }
  return json::binary(bytes);
}

// Every byte is the token of its number.
json Table() {
  constexpr uint32_t kCount = 256;
  std::vector<uint8_t> data;
  std::vector<uint8_t> offsets;
  for (uint32_t id = 0; id <= kCount; ++id) {
    if (id < kCount) data.push_back(static_cast<uint8_t>(id));
    for (int shift = 0; shift < 32; shift += 8) {
      offsets.push_back(static_cast<uint8_t>(id >> shift));
    }
  }
  const json table = {{"format", "slipstream.token_table"},
                      {"version", 1},
                      {"joiner", "byte_level"},
                      {"count", kCount},
                      {"flags", json::binary(std::vector<uint8_t>(kCount, 1))},
                      {"offsets", json::binary(offsets)},
                      {"data", json::binary(data)}};
  return json::binary(json::to_msgpack(table));
}

json Answer(const json& request) {
  json words = json::object();
  for (const auto& [name, list] : request.at("words").items()) {
    words[name] = json::array();
    for (const json& word : list) words[name].push_back(Ids(word.get<std::string>()));
  }
  const bool is_text = request.contains("text");
  const std::string prompt =
      is_text ? request.at("text").get<std::string>() : request.at("messages").dump();
  return {{"id", request.at("id")}, {"ids", Ids(prompt)}, {"words", words}};
}

}  // namespace

int RunTokenizerDouble() {
  Channel channel{UniqueFd(kLinkFd)};
  const json hello = {{"vocab_size", 256}, {"eos_id", -1},           {"pad_id", -1},
                      {"bos_id", -1},      {"token_table", Table()}, {"has_chat_template", false}};
  if (!channel.WriteMap(FrameType::kHello, hello, kTimeoutMs).ok()) return 1;
  for (;;) {
    Frame frame;
    const auto next = channel.WaitRead(&frame, DeadlineNs(kTimeoutMs), -1);
    if (!next.ok() || *next == Channel::Next::kEnd || frame.type == FrameType::kShutdown) return 0;
    if (frame.type != FrameType::kRequest) continue;
    const auto request = ParseMap(frame);
    if (!request.ok()) return 1;
    if (!channel.WriteMap(FrameType::kReply, Answer(*request), kTimeoutMs).ok()) return 1;
  }
}

}  // namespace slipstream
