// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "executor/status.h"
#include "triton/model_config.h"
#include "triton/response_stream.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// One loaded model of the repository, in one of the roles.
class Model {
 public:
  // Loads the model (blocking). Errors name the parameter or tensor at fault.
  static StatusOr<std::unique_ptr<Model>> Create(ModelConfig config);
  virtual ~Model() = default;  // drains
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Of each instance that the server makes, on any thread. Refuses those beyond instance_group as
  // it was at loading: where nothing else of the configuration has changed, the server takes over a
  // new one without loading the model again.
  Status AddInstance();

  // Takes the requests over; every one gets exactly one final response, here or later. Several
  // instances may call at once.
  void Execute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests,
               uint32_t count);

  // Whether a request that arrives now would be served.
  virtual Status Ready() const = 0;

  const ModelConfig& config() const { return config_; }

 protected:
  explicit Model(ModelConfig config) : config_(std::move(config)) {}
  // Reads the request and sees to its responses. An error that it returns was not sent.
  virtual Status Handle(std::unique_ptr<ResponseStream>* stream) = 0;

 private:
  void ExecuteOne(std::unique_ptr<ResponseStream> stream) noexcept;

  const ModelConfig config_;
  std::atomic<int> instances_{0};
};

// Logs, once, the parameters that were accepted for compatibility only.
void LogWithoutEffect(const std::string& model, const std::vector<std::string>& parameters);

}  // namespace slipstream::triton
