// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "triton/metrics.h"
#include "triton/model.h"
#include "triton/prompt_tokenizer.h"
#include "triton/request_data.h"
#include "triton/text_queue.h"

namespace slipstream::triton {

// The outputs of role `tokenize` that are requested, rows padded on the right to a rectangle.
std::vector<OutputTensor> BuildTokenizeOutputs(const RequestData& request,
                                               const std::vector<TokenizedRow>& rows,
                                               int32_t vocab_size, bool batched);

// Role `tokenize`: text or chat messages to token ids, through tokenizer processes. As many
// requests are tokenized at once as the configuration has instances, and there are processes; the
// others wait in a queue of ours.
class TokenizeModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<TokenizeModel>> Create(ModelConfig config);
  Status Ready() const override { return Status::Ok(); }

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  TokenizeModel(ModelConfig config, const TokenizeParameters& parameters,
                std::unique_ptr<PromptTokenizer> tokenizer);
  Status Finish(TextJob* job, const std::vector<TokenizedRow>& rows) const;

  const std::unique_ptr<PromptTokenizer> tokenizer_;
  TextQueue queue_;  // last, so that its threads end first
  const std::unique_ptr<MetricsReporter> metrics_;
};

}  // namespace slipstream::triton
