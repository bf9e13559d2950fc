// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker_hello.h"
#include "worker_link/bounded_json.h"
#include "worker_link/tokenizer_messages.h"
#include "worker_link/worker_messages.h"

namespace slipstream {
namespace {

using nlohmann::json;

std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

StatusOr<json> FromPacked(const std::string& bytes) {
  return ParseMsgpack(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

json Ids(size_t count) { return json::binary(std::vector<uint8_t>(4 * count)); }

}  // namespace

TEST_CASE("bounded json: a hundred levels and no more, however many there are") {
  CHECK(ParseJson(Nested(100)).ok());
  CHECK(ParseJson(Nested(101)).status().message() == "is nested deeper than 100 levels");
  CHECK(ParseJson(std::string(5'000'000, '[')).status().message() ==
        "is nested deeper than 100 levels");
  CHECK(ParseJson("[1").status().message() == "is not JSON");
  CHECK(ParseJson(R"({"a": [1, {"b": null}]})").value().at("a").size() == 2);
  CHECK(FromPacked(std::string(99, '\x91') + '\x90').ok());
  CHECK(FromPacked(std::string(5'000'000, '\x91')).status().message() ==
        "is nested deeper than 100 levels");
  CHECK(FromPacked("\xc1").status().message() == "is not msgpack");
}

TEST_CASE("bounded json: wide is not deep") {
  std::string wide = "[";
  for (int i = 0; i < 1000; ++i) wide += "[{}],";
  CHECK(ParseJson(wide + "{}]").value().size() == 1001);
}

TEST_CASE("worker messages: a HELLO without a group of KV is refused") {
  json hello = WorkerHello();
  REQUIRE(ParseWorkerHello(hello).ok());
  hello["kv_groups"] = json::array();
  const auto info = ParseWorkerHello(hello);
  CHECK(info.status().code() == StatusCode::kInternal);
  CHECK(info.status().message() == "the worker's HELLO: kv_groups is empty");
}

TEST_CASE("worker messages: a HELLO says what a step may hold") {
  json hello = WorkerHello();
  const auto info = ParseWorkerHello(hello);
  REQUIRE(info.ok());
  CHECK(info->max_num_seqs == 32);
  CHECK(info->max_num_tokens == 256);
  hello["max_num_seqs"] = 0u;
  CHECK(ParseWorkerHello(hello).status().message() ==
        "the worker's HELLO: max_num_seqs is 0, must be between 1 and 65536");
}

TEST_CASE("worker messages: STATS count every expert or none") {
  std::vector<uint64_t> counts = {1, 2};
  CHECK(
      AddWorkerStats({{"expert_tokens", json::binary(std::vector<uint8_t>(16, 1))}}, &counts).ok());
  CHECK(counts == std::vector<uint64_t>{0x0101010101010102, 0x0101010101010103});
  CHECK(AddWorkerStats({{"expert_tokens", json::binary({1})}}, &counts).message() ==
        "the worker's STATS: expert_tokens has 1 bytes, must have 16");
}

TEST_CASE("tokenizer messages: an answer has as many words as were asked for") {
  TokenizerRequest request;
  request.text = "a";
  request.words = {{"stop", {"x", "y"}}};
  const auto answer = [&](const json& words) {
    return ParseTokenizerReply({{"ids", Ids(3)}, {"words", words}}, request);
  };
  CHECK(answer({{"stop", {Ids(1), Ids(2)}}}).value().words.at("stop")[1].size() == 2);
  const std::string malformed = "the tokenizer process's reply is malformed";
  CHECK(answer({{"stop", {Ids(1)}}}).status().message() == malformed);
  CHECK(answer({{"other", {Ids(1), Ids(2)}}}).status().message() == malformed);
  CHECK(answer({{"stop", {Ids(1), json::binary({1, 2, 3})}}}).status().message() == malformed);
  CHECK(answer({{"stop", {Ids(1), Ids(1)}}, {"more", json::array()}}).status().message() ==
        malformed);
}

}  // namespace slipstream
