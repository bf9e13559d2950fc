// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor/token_table.h"
#include "triton/detokenize_registry.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/request_data.h"

namespace slipstream::triton {

// Role `detokenize`: token ids to text.
//
// A single decode of a stream's piece cannot be right (pieces end inside characters, spaces depend
// on what came before), so role `llm` settles the text of its own streams and sends it along in
// FLOW, which is passed on unchanged. Without FLOW each row is decoded by itself.
//
// In an ensemble it is also the only place that learns that the client has gone: FLOW begins with
// the key of the stream to cancel, or to acknowledge (see FlowRegistry).
//
// ACCEPTANCE_RATE passes through. It is here because of how Triton looks for a response to send:
// for every optional output of `llm` it walks the ensemble's outputs, in the order of their names,
// up to the first one that is not there yet. acceptance_rate is the first of all; as long as it
// comes from this step the walks are one step long, else they cost more than anything else.
class DetokenizeModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<DetokenizeModel>> Create(ModelConfig config);
  Status Ready() const override { return Status::Ok(); }

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  DetokenizeModel(ModelConfig config, bool skip_special_tokens,
                  std::shared_ptr<const TokenTable> table)
      : Model(std::move(config)),
        skip_special_tokens_(skip_special_tokens),
        table_(std::move(table)),
        registration_(this->config().name, skip_special_tokens) {}

  const bool skip_special_tokens_;
  const std::shared_ptr<const TokenTable> table_;
  const DetokenizeRegistration registration_;
};

}  // namespace slipstream::triton
