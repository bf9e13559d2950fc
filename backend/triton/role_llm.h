// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "triton/llm_registry.h"
#include "triton/llm_service.h"
#include "triton/model.h"

namespace slipstream::triton {

// Role `llm`: requests go to the Executor, events come back through Delivery.
class LlmModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<LlmModel>> Create(ModelConfig config);
  // Lets accepted requests finish, for at most drain_timeout_ms.
  ~LlmModel() override;

  Status Ready() const override { return service_->Ready(); }

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  LlmModel(ModelConfig config, std::shared_ptr<LlmService> service)
      : Model(std::move(config)), service_(std::move(service)) {
    registration_.emplace(this->config().name, service_);
  }

  const std::shared_ptr<LlmService> service_;
  std::optional<LlmRegistration> registration_;
};

}  // namespace slipstream::triton
