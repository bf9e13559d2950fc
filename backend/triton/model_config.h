// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "executor/status.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {

// What the backend needs to know of a model's configuration (config.pbtxt).
struct ModelConfig {
  std::string name;
  int64_t version = 1;
  bool batched = false;  // max_batch_size > 0: tensors carry a batch dimension
  bool decoupled = false;
  bool dynamic_batching = false;
  bool preserve_ordering = false;  // of dynamic_batching
  int instance_count = 1;
  std::vector<DeclaredTensor> inputs;
  std::vector<DeclaredTensor> outputs;
  // Set parameters only: an empty value and a placeholder that was never filled ("${…}") both mean
  // that the parameter is not set.
  std::map<std::string, std::string> parameters;
  // Where it comes from.
  std::string json;
  TRITONSERVER_Server* server = nullptr;

  // `json`: the ModelConfig message as Triton serializes it.
  static StatusOr<ModelConfig> FromJson(std::string_view json);
  static StatusOr<ModelConfig> Of(TRITONBACKEND_Model* model);
};

}  // namespace slipstream::triton
