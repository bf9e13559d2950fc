// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "executor/executor.h"
#include "triton/delivery.h"
#include "triton/health_watch.h"
#include "triton/metrics.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/request_reader.h"

namespace slipstream::triton {

// Role `llm`: requests go to the Executor, events come back through Delivery.
class LlmModel final : public Model {
 public:
  static StatusOr<std::unique_ptr<LlmModel>> Create(ModelConfig config);
  // Lets accepted requests finish, for at most drain_timeout_ms.
  ~LlmModel() override;

  // Ready only when a token can be served now.
  Status Ready() const override;

 protected:
  Status Handle(std::unique_ptr<ResponseStream>* stream) override;

 private:
  LlmModel(ModelConfig config, LlmParameters parameters);
  Status Load();
  Status CheckLoaded() const;
  void StartReporting();
  void Submit(const std::shared_ptr<LlmStream>& stream, std::vector<RequestSpec> rows);

  const LlmParameters parameters_;
  ReaderSettings reader_;  // constant after Load
  std::shared_ptr<Delivery> delivery_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<MetricsReporter> metrics_;
  std::unique_ptr<HealthWatch> watch_;
};

}  // namespace slipstream::triton
