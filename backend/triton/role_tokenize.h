// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "triton/model.h"
#include "triton/prompt_tokenizer.h"
#include "triton/request_data.h"

namespace slipstream::triton {

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
  TokenizeModel(ModelConfig config, std::unique_ptr<PromptTokenizer> tokenizer)
      : Model(std::move(config)), tokenizer_(std::move(tokenizer)) {}

  const std::unique_ptr<PromptTokenizer> tokenizer_;
};

}  // namespace slipstream::triton
