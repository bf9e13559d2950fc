// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "executor/word_list.h"
#include "triton/parameters.h"
#include "triton/request_data.h"
#include "worker_link/tokenizer_pool.h"

namespace slipstream::triton {

// One row of a request, tokenized.
struct TokenizedRow {
  std::vector<int32_t> ids;
  WordList stop_words;
  WordList bad_words;
  std::vector<std::pair<int32_t, float>> bias;  // what is added per token id; ids may repeat
  int32_t output_len = 0;
  std::optional<int32_t> end_id;
  int32_t pad_id = 0;
};

// One row of a request as it is to be tokenized; a copy, which needs the request no longer.
struct TextRow {
  TokenizerRequest ask;
  std::vector<float> bias_weights;  // of the words to bias
  int32_t output_len = 0;
  std::optional<int32_t> end_id;
  int32_t pad_id = 0;
};

// Text or chat messages to token ids, through tokenizer processes, for the roles that take text.
// Models of equal parameters share the processes. Thread-safe; a caller waits for its own answer.
class PromptTokenizer {
 public:
  // Blocks until the processes have loaded.
  static StatusOr<std::unique_ptr<PromptTokenizer>> Create(const TokenizeParameters& parameters);

  const TokenizerInfo& info() const { return pool_->info(); }

  // `request` holds the inputs of role `tokenize`; the errors name them.
  StatusOr<std::vector<TextRow>> Read(const RequestData& request) const;
  StatusOr<std::vector<TokenizedRow>> Tokenize(const std::vector<TextRow>& rows) const;

 private:
  PromptTokenizer(const TokenizeParameters& parameters, std::shared_ptr<TokenizerPool> pool)
      : add_special_tokens_(parameters.add_special_tokens),
        allow_special_(parameters.allow_special),
        pool_(std::move(pool)) {}
  StatusOr<TextRow> ReadRow(const RequestData& request, int64_t row) const;
  StatusOr<TokenizedRow> TokenizeRow(const TextRow& row) const;

  const bool add_special_tokens_;
  const std::optional<bool> allow_special_;
  const std::shared_ptr<TokenizerPool> pool_;
};

}  // namespace slipstream::triton
