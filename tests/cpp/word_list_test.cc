// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/word_list.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace slipstream {
namespace {

StatusOr<WordList> Parse(const std::vector<int32_t>& tensor) {
  return ParseWordList("stop_words_list", tensor.data(), tensor.size());
}

void CheckError(const std::vector<int32_t>& tensor, const std::string& message) {
  const auto words = Parse(tensor);
  REQUIRE_FALSE(words.ok());
  CHECK(words.status().code() == StatusCode::kInvalidArgument);
  CHECK(words.status().message() == message);
}

TEST_CASE("word list: reads ids and cumulative offsets") {
  CHECK(*Parse({}) == WordList{});
  CHECK(*Parse({0, -1}) == WordList{});
  CHECK(*Parse({7, 1}) == WordList{{7}});
  CHECK(*Parse({1, 2, 3, 4, 2, 3, 4, -1}) == WordList{{1, 2}, {3}, {4}});
  CHECK(*Parse({5, 6, 7, 3, -1, -1}) == WordList{{5, 6, 7}});
  CHECK(*Parse({5, 0, 0, 0, 1, 2, -1, -1}) == WordList{{5}, {0}});  // id 0 is an id like any other
}

TEST_CASE("word list: errors name the field, the fault and the column") {
  CheckError({1, 2, 3}, "stop_words_list: odd length: 3 elements do not make two rows");
  CheckError({1, 2, 3, 4, 1, -1, 4, -1},
             "stop_words_list: additional -1s: offset 4 at column 2 follows padding");
  CheckError({1, 2, 3, 4, 2, 5, -1, -1},
             "stop_words_list: out-of-bound offsets: 5 at column 1, not within 1..4");
  CheckError({1, 2, -2, -1},
             "stop_words_list: out-of-bound offsets: -2 at column 0, not within 1..2");
  CheckError({1, 2, 3, 4, 2, 2, -1, -1},
             "stop_words_list: non-increasing offsets: 2 at column 1 after 2");
  CheckError({1, 2, 3, 4, 3, 2, -1, -1},
             "stop_words_list: non-increasing offsets: 2 at column 1 after 3");
  CheckError({1, 2, 0, -1}, "stop_words_list: non-increasing offsets: 0 at column 0 after 0");
  CheckError({1, 2, INT32_MAX, -1},
             "stop_words_list: out-of-bound offsets: 2147483647 at column 0, not within 1..2");
}

TEST_CASE("word list: encoding pads to the common width") {
  CHECK(EncodeWordList({}).empty());
  CHECK(EncodeWordList({}, 2) == std::vector<int32_t>{0, 0, -1, -1});
  CHECK(EncodeWordList({{1, 2}, {3}}) == std::vector<int32_t>{1, 2, 3, 2, 3, -1});
  CHECK(EncodeWordList({{1}, {}, {2}}, 3) == std::vector<int32_t>{1, 2, 0, 1, 2, -1});
}

TEST_CASE("word list: parse inverts encode") {
  std::mt19937 random(20240);
  for (int round = 0; round < 500; ++round) {
    WordList words(random() % 6);
    for (auto& word : words) {
      word.resize(1 + random() % 4);
      for (auto& id : word) id = static_cast<int32_t>(random() % 5);
    }
    CHECK(*Parse(EncodeWordList(words, random() % 12)) == words);
  }
}

}  // namespace
}  // namespace slipstream
