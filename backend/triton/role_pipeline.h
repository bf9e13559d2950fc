// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "triton/llm_registry.h"
#include "triton/llm_service.h"
#include "triton/metrics.h"
#include "triton/model.h"
#include "triton/prompt_tokenizer.h"
#include "triton/request_reader.h"
#include "triton/text_queue.h"

namespace slipstream::triton {

// Role `pipeline`: a whole ensemble as one model. Tokenizes like role `tokenize`, then hands the
// request to the model of role `llm` that its parameter llm_model_name names, which answers the
// client itself. What waits to be tokenized counts against that model's max_queue_requests, so that
// a request finds out at once, and before any work, that the queue is full.
//
// The `llm` is looked up at each request: it may be loaded later than this model, and be unloaded
// or reloaded while this one stays. Without it the answer is UNAVAILABLE.
class PipelineModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<PipelineModel>> Create(ModelConfig config);

  Status Ready() const override;  // as ready as the `llm`

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  PipelineModel(ModelConfig config, const PipelineParameters& parameters, ReaderSettings reader,
                std::unique_ptr<PromptTokenizer> tokenizer);

  StatusOr<std::shared_ptr<LlmService>> Llm() const;
  Status Enqueue(RequestData&& data, TimeNs arrival, std::unique_ptr<ResponseStream>* stream);
  Status Finish(TextJob* job, std::vector<TokenizedRow> rows) const;
  ReaderSettings ReaderFor(const LlmService& llm) const;

  const std::string llm_name_;
  const ReaderSettings reader_;  // the part that is this model's own
  const std::unique_ptr<PromptTokenizer> tokenizer_;
  TextQueue queue_;  // its threads end before what they use goes
  const std::unique_ptr<MetricsReporter> metrics_;
  const PipelineRegistration registration_;
};

}  // namespace slipstream::triton
