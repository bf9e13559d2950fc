// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/word_list.h"

#include <algorithm>
#include <string>
#include <utility>

namespace slipstream {
namespace {

std::string At(size_t column) { return " at column " + std::to_string(column); }

}  // namespace

StatusOr<WordList> ParseWordList(std::string_view field, const int32_t* data, size_t size) {
  const std::string name(field);
  if (size % 2 != 0) {
    return Status::InvalidArgument(name + ": odd length: " + std::to_string(size) +
                                   " elements do not make two rows");
  }
  const size_t columns = size / 2;
  const int32_t* ids = data;
  const int32_t* offsets = data + columns;
  WordList words;
  int64_t previous = 0;
  bool padding = false;
  for (size_t i = 0; i < columns; ++i) {
    const int64_t end = offsets[i];
    if (end == -1) {
      padding = true;
      continue;
    }
    if (padding) {
      return Status::InvalidArgument(name + ": additional -1s: offset " + std::to_string(end) +
                                     At(i) + " follows padding");
    }
    if (end < 0 || end > static_cast<int64_t>(columns)) {
      return Status::InvalidArgument(name + ": out-of-bound offsets: " + std::to_string(end) +
                                     At(i) + ", not within 1.." + std::to_string(columns));
    }
    if (end <= previous) {
      return Status::InvalidArgument(name + ": non-increasing offsets: " + std::to_string(end) +
                                     At(i) + " after " + std::to_string(previous));
    }
    words.emplace_back(ids + previous, ids + end);
    previous = end;
  }
  return words;
}

std::vector<int32_t> EncodeWordList(const WordList& words, size_t min_columns) {
  size_t num_ids = 0;
  for (const auto& word : words) num_ids += word.size();
  const size_t columns = std::max(num_ids, min_columns);
  std::vector<int32_t> tensor(2 * columns, 0);
  std::fill(tensor.begin() + static_cast<ptrdiff_t>(columns), tensor.end(), -1);
  size_t end = 0;
  size_t entry = columns;
  for (const auto& word : words) {
    if (word.empty()) continue;
    std::copy(word.begin(), word.end(), tensor.begin() + static_cast<ptrdiff_t>(end));
    end += word.size();
    tensor[entry++] = static_cast<int32_t>(end);
  }
  return tensor;
}

}  // namespace slipstream
