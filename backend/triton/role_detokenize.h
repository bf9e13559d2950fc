// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor/token_table.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/request_data.h"

namespace slipstream::triton {

// Role `detokenize`: token ids to text.
//
// A single decode of a stream's piece cannot be right (pieces end inside characters, spaces depend
// on what came before), so role `llm` settles the text of its own streams and sends it along as
// TEXT, which is passed on unchanged. Without TEXT each row is decoded by itself.
//
// In an ensemble it is also the only place that learns that the client has gone: FLOW names the
// stream to cancel, or to acknowledge (see FlowRegistry).
class DetokenizeModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<DetokenizeModel>> Create(ModelConfig config);
  Status Ready() const override { return Status::Ok(); }

  // The strings of OUTPUT: TEXT, or what TOKENS_BATCH decodes to up to SEQUENCE_LENGTH.
  static StatusOr<std::vector<std::string>> Texts(const RequestData& request,
                                                  const std::shared_ptr<const TokenTable>& table,
                                                  bool skip_special_tokens);

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  DetokenizeModel(ModelConfig config, bool skip_special_tokens,
                  std::shared_ptr<const TokenTable> table)
      : Model(std::move(config)),
        skip_special_tokens_(skip_special_tokens),
        table_(std::move(table)) {}

  const bool skip_special_tokens_;
  const std::shared_ptr<const TokenTable> table_;
};

}  // namespace slipstream::triton
