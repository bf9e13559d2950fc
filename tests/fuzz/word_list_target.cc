// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/word_list.h"

#include <string>
#include <vector>

#include "input_bytes.h"
#include "targets.h"

namespace slipstream::fuzz {
namespace {

void Run(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  std::vector<int32_t> values(size / sizeof(int32_t));
  for (int32_t& value : values) value = in.Value<int32_t>();
  const auto words = ParseWordList("words", values.data(), values.size());
  if (!words.ok()) {
    Require(words.status().code() == StatusCode::kInvalidArgument, "a wrong list is the caller's");
    Require(words.status().message().rfind("words: ", 0) == 0, "the message names the field");
    return;
  }
  Require(values.size() % 2 == 0, "an odd length makes no two rows");
  const size_t columns = values.size() / 2;
  std::vector<int32_t> joined;
  for (const auto& word : *words) {
    Require(!word.empty(), "no word is empty");
    joined.insert(joined.end(), word.begin(), word.end());
  }
  Require(joined.size() <= columns && std::equal(joined.begin(), joined.end(), values.begin()),
          "the words, joined, begin row 0");
  const std::vector<int32_t> written = EncodeWordList(*words, columns);
  Require(written.size() == values.size(), "written as wide as it was read");
  const auto again = ParseWordList("words", written.data(), written.size());
  Require(again.ok() && *again == *words, "what is written reads the same");
}

std::vector<std::string> Seeds() {
  const WordList lists[] = {{}, {{5}}, {{5, 6}, {7}}, {{1}, {2}, {3, 4, 5, 6}}};
  std::vector<std::string> seeds;
  for (const WordList& list : lists) {
    seeds.push_back(BytesOf(EncodeWordList(list)));
    seeds.push_back(BytesOf(EncodeWordList(list, 9)));
  }
  return seeds;
}

}  // namespace

FuzzTarget WordListTarget() { return {"word_list", Run, Seeds}; }

}  // namespace slipstream::fuzz
