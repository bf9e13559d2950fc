// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "executor/word_list.h"
#include "triton/model.h"
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

// The outputs of role `tokenize` that are requested, rows padded on the right to a rectangle.
std::vector<OutputTensor> BuildTokenizeOutputs(const RequestData& request,
                                               const std::vector<TokenizedRow>& rows,
                                               int32_t vocab_size, bool batched);

// Role `tokenize`: text or chat messages to token ids, through tokenizer processes. Each of
// Triton's instances waits for its own answer: as many requests are tokenized at once as there are
// instances and processes.
class TokenizeModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<TokenizeModel>> Create(ModelConfig config);
  Status Ready() const override { return Status::Ok(); }

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  TokenizeModel(ModelConfig config, TokenizeParameters parameters,
                std::unique_ptr<TokenizerPool> pool);
  StatusOr<TokenizedRow> TokenizeRow(const RequestData& request, int64_t row);

  const TokenizeParameters parameters_;
  const std::unique_ptr<TokenizerPool> pool_;
};

}  // namespace slipstream::triton
